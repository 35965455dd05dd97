#!/usr/bin/env bash
# A keeper as people write them: a loop, a log, a clean-up on SIGTERM. It hangs when it finds the file LOG.hang.
log=$1
say() {
    echo "$$ $1" >>"$log"
    echo "$1"
}
trap 'say stop; exit 0' TERM
say start
while :; do
    if [ -e "$log.hang" ]; then
        rm "$log.hang"
        trap '' TERM
        say hangs
        sleep 1000
    fi
    say tick
    sleep 0.05
done
