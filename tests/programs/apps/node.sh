# node: timers, sockets (TCP, UNIX, HTTP kept alive), the thread pool, compiled code.
# may: connected to its peer again, by no name
start() {
    launch node "$FROM/busy.js" "$HERE"
}
under_way() { lines out 20; }
judge() {
    goes_on_and_ends out 20 || return 1
    python3 "$FROM/busy.py" "$HERE"
}
