# python3: a numpy computation halfway through; its result is that of one that nobody disturbed.
start() { launch python3 "$FROM/solve.py" "$HERE"; }
under_way() { lines out 5; }
judge() {
    goes_on_and_ends out 5 || return 1
    python3 "$FROM/solve.py" --judge "$HERE"
}
