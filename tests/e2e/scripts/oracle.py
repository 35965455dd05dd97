#!/usr/bin/env python3
"""A keeper as people write them: a loop, a log, a clean-up on SIGTERM. It hangs when it finds the file LOG.hang."""
import os
import signal
import sys
import time

log = sys.argv[1]


def say(word):
    with open(log, "a") as file:
        file.write(f"{os.getpid()} {word}\n")
    print(word, flush=True)


def stop(*_):
    say("stop")
    sys.exit(0)


signal.signal(signal.SIGTERM, stop)
say("start")
while True:
    if os.path.exists(log + ".hang"):
        os.remove(log + ".hang")
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        say("hangs")
        time.sleep(1000)
    say("tick")
    time.sleep(0.05)
