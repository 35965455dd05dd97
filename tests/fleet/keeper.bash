#!/bin/bash
# The witness in bash: see hosts.py. /proc/uptime is CLOCK_BOOTTIME, cut to 10 ms; the reader knows.
log=/fleet/records/$KEEPERD_KEEPER.$HOSTNAME
say() {
    local up
    read -r up _ </proc/uptime
    echo "${up/./}0000000 $KEEPERD_FENCING_TOKEN $$ $1" >>"$log"
}
trap 'say SIGINT; exit 0' INT
trap 'say SIGTERM' TERM
trap 'say SIGHUP' HUP
say start
while :; do
    sleep 0.02
    say tick
done
