#!/usr/bin/env bash
# Puts itself into the background, as init scripts did: a session of its own, a pid file, no output, and the caller gets 0.
log=$1
if [ "${2-}" != worker ]; then
    echo "$$ start" >>"$log"
    setsid "$0" "$log" worker </dev/null >/dev/null 2>&1 &
    echo $! >"$log.pid"
    exit 0
fi
trap 'echo "$$ stop" >>"$log"; exit 0' TERM
while :; do
    if [ -e "$log.hang" ]; then
        rm "$log.hang"
        trap '' TERM
        echo "$$ hangs" >>"$log"
        sleep 1000
    fi
    echo "$$ tick" >>"$log"
    sleep 0.05
done
