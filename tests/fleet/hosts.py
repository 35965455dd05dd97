"""Booted Debian systems on one machine: each a systemd-nspawn container with its own address, on an overlay over a common base.

Everything lives in namespaces of the test's own process (run makes them), so all of it ends with the test.
"""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

BOOTS_WITHIN_S = 120
BRIDGE = "fleet0"
NETWORK = "10.98.0"


def run(*command, **options):
    return subprocess.run(command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL, **options).stdout


def now_ns():
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Failed(Exception):
    """The story did not go as it must."""


def wait_until(what, within_s, condition, every_s=0.02):
    """The first true answer of `condition`."""
    give_up = time.monotonic() + within_s
    while True:
        if answer := condition():
            return answer
        if time.monotonic() > give_up:
            raise Failed(f"not within {within_s} s: {what}")
        time.sleep(every_s)


def make_bridge():
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", BRIDGE, "type", "bridge")
    run("ip", "addr", "add", f"{NETWORK}.1/24", "dev", BRIDGE)
    run("ip", "link", "set", BRIDGE, "up")


def own_cgroups():
    """A folder for cgroups of ours in each hierarchy that systemd needs: the unified one, and on a hybrid machine its named one."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, kind = line.split(" - ")
        point = Path(fields.split()[4])
        if kind.startswith("cgroup2 ") or (kind.startswith("cgroup ") and "name=systemd" in kind):
            yield point


class Host:
    def __init__(self, name, number, base, work, shared):
        self.name, self.address = name, f"{NETWORK}.{number}"
        self.base, self.shared = base, shared
        self.folder = work / name
        self.root = self.folder / "root"
        for part in ("upper", "work", "root"):
            (self.folder / part).mkdir(parents=True)
        layers = f"lowerdir={base},upperdir={self.folder}/upper,workdir={self.folder}/work"
        run("mount", "-t", "overlay", "overlay", "-o", layers, str(self.root))
        self.nspawn = self.init = None
        # systemd-nspawn makes cgroups beside itself, of the same name for every container.
        self.cgroups = [point / f"keeperd-fleet-{os.getppid()}-{name}" for point in own_cgroups()]

    def write(self, path, text, mode=0o644):
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)

    def boot(self):
        for cgroup in self.cgroups:
            cgroup.mkdir(exist_ok=True)

        def enter():
            os.setsid()
            for cgroup in self.cgroups:
                (cgroup / "cgroup.procs").write_text("0")

        self.console = open(self.folder / "console", "a")
        self.nspawn = subprocess.Popen(
            ["systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", f"--machine={self.name}", f"--directory={self.root}",
             f"--network-bridge={BRIDGE}", f"--bind={self.shared}:/fleet", "--resolv-conf=off", "--timezone=off", "--link-journal=no",
             # What a real host has: for locked memory and for limits.
             "--capability=CAP_IPC_LOCK,CAP_SYS_RESOURCE"],
            env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
            stdin=subprocess.DEVNULL, stdout=self.console, stderr=self.console, preexec_fn=enter,
        )
        self.init = wait_until(f"{self.name} has an init", BOOTS_WITHIN_S, self._find_init)
        outside = f"vb-{self.name}"
        for command in (f"ip addr add {self.address}/24 dev host0", "ip link set host0 up"):
            run("nsenter", f"--net=/proc/{self.init}/ns/net", *command.split())
        run("ip", "link", "set", outside, "up")

    def _find_init(self):
        if self.nspawn.poll() is not None:
            raise Failed(f"{self.name} did not boot: {(self.folder / 'console').read_text()[-2000:]}")
        todo = [self.nspawn.pid]
        while todo:
            pid = todo.pop()
            try:
                todo += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
                status = Path(f"/proc/{pid}/status").read_text()
                if Path(f"/proc/{pid}/comm").read_text() == "systemd\n" and "\t1\n" in status.split("NSpid:")[1]:
                    has_link = run("nsenter", f"--net=/proc/{pid}/ns/net", "ip", "-o", "link")
                    return pid if "host0" in has_link else None
            except (FileNotFoundError, ProcessLookupError, subprocess.CalledProcessError):
                continue
        return None

    def wait_booted(self):
        def booted():
            return self.ask("systemctl", "is-system-running").strip() in ("running", "degraded")

        wait_until(f"{self.name} has booted", BOOTS_WITHIN_S, booted, 0.2)

    def _inside(self, command):
        return ["nsenter", f"--target={self.init}", "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd", "env", "-i",
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", "LC_ALL=C", *command]

    def ask(self, *command):
        """What a command says, whatever its exit code."""
        return subprocess.run(self._inside(command), capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout

    def do(self, *command):
        """A command that must succeed."""
        done = subprocess.run(self._inside(command), capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode != 0:
            raise Failed(f"{self.name}: {' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def cgroup_of(self, pid):
        lines = self.do("cat", f"/proc/{pid}/cgroup").splitlines()
        return next(line.removeprefix("0::") for line in lines if line.startswith("0::"))

    def show(self, *properties):
        said = self.do("systemctl", "show", "keeperd", *(f"--property={name}" for name in properties))
        return dict(line.split("=", 1) for line in said.splitlines())

    def journal(self, *match):
        return self.ask("journalctl", "--no-pager", "--output=cat", "-u", "keeperd", *match)

    def kill_daemon(self, signal_name):
        self.do("systemctl", "kill", "--kill-whom=main", f"--signal={signal_name}", "keeperd")

    def power_off(self):
        """As if the plug were pulled: the kernel kills all of it with its init."""
        os.kill(self.init, signal.SIGKILL)
        self.nspawn.wait()
        self.init = None

    def wait_off(self):
        self.nspawn.wait(BOOTS_WITHIN_S)
        self.init = None

    def cut(self, way):
        """`both`: the cable; `in`, `out`: packets of one direction are lost."""
        if way == "both":
            run("ip", "link", "set", f"vb-{self.name}", "down")
        else:
            hook, side = ("input", "iif") if way == "in" else ("output", "oif")
            self.do("nft", f"add table inet cut; add chain inet cut wire {{ type filter hook {hook} priority 0; }}; "
                           f"add rule inet cut wire {side} host0 drop")

    def heal(self):
        run("ip", "link", "set", f"vb-{self.name}", "up")
        self.ask("nft", "delete table inet cut")

    def wipe(self, path):
        shutil.rmtree(self.root / path.lstrip("/"))
