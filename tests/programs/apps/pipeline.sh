# Numbers until told to end, made longer, and written down.
cd "$1" || exit 1
numbers() {
    local number=0
    until [ -e finish ]; do
        echo $((number += 1))
        sleep 0.02
    done
}
kept=7
numbers | gawk '{ printf "number %d\n", $1 * 1000; fflush() }' | tee log >/dev/null
echo "ended ${PIPESTATUS[*]} after $kept" >end
