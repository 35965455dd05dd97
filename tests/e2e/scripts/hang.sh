#!/usr/bin/env bash
# Works for a moment and then hangs, every time: waits for a writer that never comes, and does not listen to SIGTERM.
log=$1
say() {
    echo "$$ $1" >>"$log"
    echo "$1"
}
trap '' TERM
[ -p "$log.fifo" ] || mkfifo "$log.fifo"
say start
for _ in 1 2 3 4 5; do
    say tick
    sleep 0.05
done
say hangs
read -r _ <"$log.fifo"
