# Feeds sqlite3 one long transaction: 3000 transfers quickly, the others one by one.
cd "$1" || exit 1
feed() {
    local number=0
    echo 'BEGIN;'
    until [ -e finish ]; do
        number=$((number + 1))
        echo "UPDATE accounts SET money = money - $number, filler = filler || 'x' WHERE id = $number;"
        echo "UPDATE accounts SET money = money + $number WHERE id = $number + 1;"
        echo "$number" >&3
        [ $number -lt 3000 ] || sleep 0.1
    done
    echo "COMMIT; SELECT 'changed ' || (total_changes() / 2);"
}
# Kept open: what is dirty of files that nobody has open goes with the host, as in any crash.
feed 3>fed | sqlite3 shop.db
