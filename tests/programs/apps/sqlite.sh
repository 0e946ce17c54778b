# sqlite3 in the middle of a transaction that has outgrown its cache: pages of it are in the
# database already, and a journal can take them back.
start() {
    rm -f shop.db* fed
    sqlite3 shop.db 'CREATE TABLE accounts (id INTEGER PRIMARY KEY, money INT, filler TEXT);
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 4000)
        INSERT INTO accounts SELECT i, 100, hex(zeroblob(500)) FROM n;'
    launch bash "$FROM/transfers.sh" "$HERE"
}
under_way() { lines fed 3100; }
# What another connection sees, which does not wait.
seen() { sqlite3 -readonly shop.db "$1" 2>&1; }
judge() {
    local before
    # It has not committed: nobody may see any of it, nor write.
    before=$(seen 'SELECT sum(money), max(money) FROM accounts')
    case $before in "400000|100" | *"database is locked"*) ;; *) echo "seen too early: $before"; return 1 ;; esac
    sqlite3 shop.db 'UPDATE accounts SET money = 0' 2>&1 | grep -q locked || { echo "its lock is gone"; return 1; }
    goes_on_and_ends fed 3 || return 1
    [ "$(cat said)" = "changed $(wc -l <fed)" ] || { cat said; wc -l fed; return 1; }
    [ "$(seen 'PRAGMA integrity_check')" = ok ] || { seen 'PRAGMA integrity_check'; return 1; }
    # Number n took n from account n and gave it to account n + 1: who got n - 1 and gave n has 99.
    local count wrong
    count=$(wc -l <fed)
    wrong=$(seen "SELECT count(*) FROM accounts WHERE money != CASE WHEN id = $count + 1
        THEN 100 + $count WHEN id <= $count THEN 99 ELSE 100 END")
    [ "$wrong" = 0 ] || { echo "$wrong accounts are wrong"; return 1; }
    [ ! -e shop.db-journal ] || { echo "a journal is left"; return 1; }
    echo "one transaction of $count transfers, begun before the crash and committed after it"
}
