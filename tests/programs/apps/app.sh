#!/bin/bash
# One application of the suite `apps`: bash app.sh NAME STEP. Its steps are functions of NAME.sh:
#   boot       what the host's administrator has done at each boot
#   prepare    once, before the crash: data, and results of a run that nobody disturbs
#   start      starts it; returns at once
#   under_way  true when it is in the middle of its work
#   selectors  what to restore
#   judge      after the restore: lets it go on and end, and says what was found; false: it is wrong
# and in its comments:
#   may: WORDS     what the fidelity report may say of it; anything else is a fault
#   refused: WORDS it is not restored, and the error says so
set -u
NAME=$1 STEP=$2
FROM=$(cd "$(dirname "$0")" && pwd)
HERE=/data/apps/$NAME
export LANG=C.UTF-8 HOME=/root
boot() { :; }
prepare() { :; }
selectors() { echo "tree:pid:$(cat "$HERE/pid")"; }

# Starts a program in a session of its own; its PID is in the file `pid`.
launch() {
    setsid "$@" </dev/null >>"$HERE/said" 2>&1 &
    echo $! >"$HERE/pid"
}

# launch, as a user of the system.
launch_as() {
    local user=$1
    shift
    launch setpriv --reuid="$user" --regid="$user" --init-groups "$@"
}

# until_true SECONDS COMMAND...
until_true() {
    local end=$((SECONDS + $1))
    shift
    until "$@" 2>/dev/null; do
        if [ $SECONDS -ge $end ]; then
            echo "not within its time: $*"
            return 1
        fi
        sleep 0.3
    done
}

# lines FILE COUNT: has it that many lines?
lines() { [ -e "$1" ] && [ "$(wc -l <"$1")" -ge "$2" ]; }
ended() { ! kill -0 "$(cat "$HERE/pid")"; }

# Waits until FILE has grown by COUNT lines, then tells the program to end, and waits for that.
goes_on_and_ends() {
    local file=$1 count=$2
    until_true 240 lines "$file" $(($(wc -l <"$file") + count)) || return 1
    touch "$HERE/finish"
    until_true 240 ended
}

mkdir -p "$HERE" && cd "$HERE" || exit 1
. "$FROM/$NAME.sh"
"$STEP"
