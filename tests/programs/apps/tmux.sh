# tmux with a shell in it, which keeps a variable, its history and what it has said.
boot() { mkdir -p -m 700 "/tmp/tmux-$(id -u)"; }
start() {
    tmux new-session -d -s work -x 100 -y 30 'bash --norc'
    tmux display-message -p '#{pid}' >pid
    type_in 'kept=$((6 * 7)); cd /data/apps; echo ready-$kept'
}
type_in() { tmux send-keys -t work "$1" Enter; }
screen() { tmux capture-pane -p -S -100 -t work; }
shows() { screen | grep -q -x "$1"; }
under_way() { shows ready-42; }
judge() {
    shows ready-42 || { screen; return 1; }
    type_in 'echo again-$((kept + 1))-$PWD'
    until_true 60 shows again-43-/data/apps || { screen; return 1; }
    # It still answers for a terminal of that size, and makes a second one.
    [ "$(tmux display-message -p -t work '#{window_width}x#{window_height}')" = 100x30 ] || return 1
    tmux split-window -t work "echo second >$HERE/second" || return 1
    until_true 60 test -s second || return 1
    type_in 'exit'
    until_true 60 ended || return 1
    echo "the shell has its variable, its directory and its screen; a second one came up beside"
}
