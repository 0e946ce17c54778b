# gcc in the middle of compiling: the driver waits for its compiler, which holds a temporary file.
# may: its file system lived in memory
prepare() {
    python3 "$FROM/program.py" 60 >program.c
    TIMEFORMAT=%U
    { time gcc -O2 -c program.c -o undisturbed.o; } 2>seconds
}
start() { launch bash -c 'gcc -O2 -c program.c -o program.o; echo "gcc ended with $?"'; }
# A quarter of what it took without a crash.
under_way() {
    local compiler
    compiler=$(pgrep -x cc1) || return 1
    awk -v whole="$(cat seconds)" '{ exit !($14 > whole * 100 / 4) }' "/proc/$compiler/stat"
}
judge() {
    until_true 400 ended || return 1
    cat said
    grep -qx 'gcc ended with 0' said || return 1
    cmp program.o undisturbed.o || return 1
    echo "the object file of $(wc -c <program.o) bytes is that of a gcc that nobody disturbed"
}
