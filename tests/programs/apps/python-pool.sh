# python3: multiprocessing, a pool of three workers forked, with its pipes and semaphores.
start() { launch python3 "$FROM/pool.py" "$HERE"; }
under_way() { lines out 20; }
judge() {
    goes_on_and_ends out 20 || return 1
    python3 "$FROM/pool.py" --judge "$HERE"
}
