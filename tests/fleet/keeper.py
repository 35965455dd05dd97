#!/usr/bin/python3
# The witness in Python: see hosts.py.
import os
import signal
import socket
import time

log = os.open(
    f"/fleet/records/{os.environ['KEEPERD_KEEPER']}.{socket.gethostname()}", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666
)


def say(event):
    at = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    os.write(log, f"{at} {os.environ['KEEPERD_FENCING_TOKEN']} {os.getpid()} {event}\n".encode())


def heard(number, _frame):
    say(signal.Signals(number).name)
    if number == signal.SIGINT:
        raise SystemExit(0)


say("start")
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, heard)
while True:
    time.sleep(0.02)
    say("tick")
