# python3: asyncio with a server, three clients, timers, a child with pipes and its watcher thread.
# may: connected to its peer again, by no name
start() {
    rm -f socket
    launch python3 "$FROM/gathered.py" "$HERE"
}
under_way() { lines out 20; }
judge() {
    goes_on_and_ends out 20 || return 1
    python3 "$FROM/gathered.py" --judge "$HERE"
}
