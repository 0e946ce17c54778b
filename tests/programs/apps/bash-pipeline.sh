# bash: a pipeline of three commands, under a shell that waits for them.
start() { launch bash "$FROM/pipeline.sh" "$HERE"; }
under_way() { lines log 40; }
judge() {
    goes_on_and_ends log 40 || return 1
    [ "$(cat end)" = "ended 0 0 0 after 7" ] || { cat end; return 1; }
    # By another way than the pipeline's own.
    local count
    count=$(wc -l <log)
    seq 1 "$count" | sed 's/$/000/; s/^/number /' >expected
    cmp log expected && echo "$count lines through three commands, each once and in order"
}
