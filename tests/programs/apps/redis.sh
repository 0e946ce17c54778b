# redis without persistence: 100 000 keys that are nowhere but in its memory, and a client at work.
PORT=6379
boot() { mkdir -p /run/redis /var/lib/redis && chown redis:redis /run/redis /var/lib/redis; }
start() {
    launch_as redis redis-server /etc/redis/redis.conf --daemonize no --save '' --logfile ''
    until_true 120 redis-cli -p $PORT ping || return 1
    python3 "$FROM/keys.py" load | redis-cli -p $PORT --pipe >loaded || return 1
    grep -q 'errors: 0, replies: 100003' loaded || { cat loaded; return 1; }
    setsid python3 "$FROM/keys.py" client "$HERE" </dev/null >>client-said 2>&1 &
    echo $! >client
}
under_way() { lines out 20; }
selectors() { echo "tree:pid:$(cat pid)" "tree:pid:$(cat client)"; }
judge() {
    # A new client first: every key, every value, and nothing else.
    python3 "$FROM/keys.py" judge "$HERE" || return 1
    local before
    before=$(wc -l <out)
    until_true 240 lines out $((before + 20)) || { cat client-said; return 1; }
    touch finish
    until_true 60 grep -q done out || { cat client-said; return 1; }
    python3 "$FROM/keys.py" judge-client "$HERE" || return 1
    redis-cli -p $PORT shutdown nosave
    until_true 60 ended
}
