"""What the keepers themselves wrote: who lived when, with which token, and which signals they saw.

A record is `boot_ns token pid event`, one write each, in a file for each keeper and host. CLOCK_BOOTTIME is one clock for all hosts here.
"""

from collections import defaultdict
from dataclasses import dataclass, field

from hosts import now_ns

# bash knows the time in steps of 10 ms, cut; a start is later than it says by up to this.
BASH_GRAIN_NS = 10_000_000
# The last record of who lives is never older than this, on a machine that is busy.
ALIVE_NS = 400_000_000


@dataclass
class Life:
    keeper: str
    host: str
    token: int
    pid: int
    first: int
    last: int
    signals: list = field(default_factory=list)


class Witness:
    def __init__(self, folder):
        self.folder = folder
        self.offsets = defaultdict(int)
        self.lives = {}

    def read(self):
        for file in self.folder.iterdir():
            keeper, host = file.name.rsplit(".", 1)
            with open(file, "rb") as records:
                records.seek(self.offsets[file.name])
                for line in records:
                    if not line.endswith(b"\n"):
                        break
                    self.offsets[file.name] += len(line)
                    self._take(keeper, host, *line.decode().split())

    def _take(self, keeper, host, at, token, pid, event):
        at, token, pid = int(at), int(token), int(pid)
        life = self.lives.get((keeper, host, token, pid))
        if event == "start":
            first = at + BASH_GRAIN_NS if keeper == "bash" else at
            assert life is None, f"{keeper} on {host} starts twice as {pid}"
            self.lives[keeper, host, token, pid] = Life(keeper, host, token, pid, first, at)
            return
        life.last = max(life.last, at)
        if event != "tick":
            life.signals.append(event)

    def of(self, keeper):
        self.read()
        return sorted((life for life in self.lives.values() if life.keeper == keeper), key=lambda life: life.first)

    def holder(self, keeper, since=None):
        """Who has shown a sign of life since then, or lately: then it may be dead by now."""
        lives = self.of(keeper)
        since = now_ns() - ALIVE_NS if since is None else since
        return lives[-1] if lives and lives[-1].last > since else None

    def alarms(self):
        """Every breach of what is promised, in words, and the longest overlap in ms."""
        found, overlap_ms = [], 0.0
        for keeper in sorted({life.keeper for life in self.lives.values()}):
            lives = self.of(keeper)
            for before, after in zip(lives, lives[1:]):
                common = (before.last - after.first) / 1e6
                if common > 0:
                    overlap_ms = max(overlap_ms, common)
                    found.append(f"{keeper}: {before.host} and {after.host} both lived for {common:.1f} ms")
                if after.token < before.token or (after.token == before.token and after.host != before.host):
                    found.append(f"{keeper}: token {after.token} on {after.host} after {before.token} on {before.host}")
            for life in lives:
                if set(life.signals) - {"SIGINT"}:
                    found.append(f"{keeper} on {life.host} saw {life.signals}, and its stop_signal is SIGINT")
        return found, overlap_ms
