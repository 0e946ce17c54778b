# nginx with its worker, in the middle of a slow download over loopback.
boot() {
    mkdir -p /var/lib/nginx /data/log/nginx /data/www
    busybox mount --bind /data/log /var/log && busybox mount --bind /data/www /var/www/html
}
prepare() {
    python3 -c 'import hashlib
with open("/var/www/html/file", "wb") as file:
    for n in range(500000):
        file.write(hashlib.sha256(b"%d" % n).digest() * 2)'
}
start() {
    nginx || return 1
    until_true 60 curl -s -o /dev/null http://127.0.0.1/index.html || true
    cp /run/nginx.pid pid
    setsid python3 "$FROM/download.py" http://127.0.0.1/file "$HERE" </dev/null >>client-said 2>&1 &
    echo $! >client
}
# Both ends of its connections, and what each side has said.
seen() {
    ss -tanoem
    cat /var/log/nginx/*.log client-said
}
grows() { [ "$(stat -c %s download)" -gt $(($1 + 200000)) ]; }
under_way() { [ -e download ] && [ "$(stat -c %s download)" -gt 100000 ]; }
selectors() { echo "tree:pid:$(cat pid)" "tree:pid:$(cat client)"; }
judge() {
    local before
    before=$(stat -c %s download)
    until_true 60 grows "$before" || { seen; return 1; }
    curl -sS -o second http://127.0.0.1/file && cmp second /var/www/html/file || { seen; return 1; }
    touch finish
    until_true 240 grep -qx done client-said || { seen; return 1; }
    cmp download /var/www/html/file || return 1
    # By its number: /run/nginx.pid, which nobody had open, went with the host's memory.
    kill -QUIT "$(cat pid)"
    until_true 60 ended || return 1
    echo "a download of $(stat -c %s download) bytes went on from $before and is the file; a new client gets it too"
}
