# PostgreSQL with eight connections, in one of them a transaction that was begun before the crash.
# may: connected to its peer again, by no name
# may: System V shared memory
# may: its file system lived in memory
BIN=/usr/lib/postgresql/15/bin
DATA=/var/lib/postgresql/15/main
boot() {
    mkdir -p /run/postgresql /var/lib/postgresql && chown postgres:postgres /run/postgresql /var/lib/postgresql
}
as_postgres() { setpriv --reuid=postgres --regid=postgres --init-groups env HOME=/var/lib/postgresql "$@"; }
prepare() { as_postgres $BIN/initdb -D $DATA >initdb-said 2>&1 || { tail initdb-said; return 1; }; }
start() {
    launch_as postgres $BIN/postgres -D $DATA
    until_true 240 as_postgres psql -Atc 'SELECT 1' || return 1
    ask 'CREATE TABLE items (id integer PRIMARY KEY, worker integer, backend integer, filler text);
        CREATE INDEX items_worker ON items (worker, id)' || return 1
    chown postgres "$HERE"
    setsid setpriv --reuid=postgres --regid=postgres --init-groups \
        python3 "$FROM/connections.py" "$HERE" </dev/null >>client-said 2>&1 &
    echo $! >client
}
under_way() { lines acks 40; }
selectors() { echo "tree:pid:$(cat pid)" "tree:pid:$(cat client)"; }
ask() { as_postgres psql -AtX -c "$1"; }
judge() {
    local before
    before=$(wc -l <acks)
    # A new client sees nothing of the open transaction.
    [ "$(ask "SELECT count(*) FROM items WHERE id <= 0")" = 0 ] || { echo "no answer, or seen before its commit"; return 1; }
    until_true 240 lines acks $((before + 40)) || { cat client-said; tail -n 20 said; return 1; }
    touch finish
    until_true 120 grep -qx done client-said || { cat client-said; tail -n 20 said; return 1; }
    # Each acknowledged item once; the transaction's five rows as well, by the same backend.
    ask 'SELECT id FROM items WHERE id > 0 ORDER BY id' >stored
    sort -n acks >acked
    cmp stored acked || { echo "acknowledged and stored differ"; return 1; }
    [ "$(ask 'SELECT count(*), sum(id) FROM items WHERE id <= 0')" = '5|-10' ] || return 1
    as_postgres $BIN/pg_amcheck --all --heapallindexed --parent-check --install-missing >amcheck 2>&1 || { cat amcheck; return 1; }
    kill -INT "$(cat pid)"
    until_true 120 ended || return 1
    grep -E 'PANIC|FATAL|crash|recovery' said | grep -v -E 'terminating connection|starting up' && return 1
    echo "$(wc -l <acked) commits, each once, $before of them before a new client came; one transaction over the crash; pg_amcheck is content"
}
