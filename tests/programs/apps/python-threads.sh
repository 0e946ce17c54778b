# python3: four threads hand numbers on through queues, under locks, conditions and timers.
start() { launch python3 "$FROM/threads.py" "$HERE"; }
under_way() { lines out 20; }
judge() {
    goes_on_and_ends out 20 || return 1
    python3 "$FROM/threads.py" --judge "$HERE"
}
