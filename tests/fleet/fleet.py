"""Three Redis hosts and three keeper hosts that boot systemd, keeperd from its package, keepers in bash, Python and Node; what an
operator does and what befalls hosts, judged by what the keepers themselves wrote. See README.md beside the other tests.
"""

import argparse
import json
import secrets
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from hosts import Failed, Host, make_bridge, now_ns, run, wait_until
from witness import Witness

HERE = Path(__file__).parent
KEEPERS = ("bash", "python", "node")
TTL_S = 4
# For what takes milliseconds, on a machine that does much else.
SOON_S = 20
# A node that has restarted, or is new, does not vote for this long: 30 s × 1.01 + 2 s.
QUARANTINE_S = 32.3
BIRTHS = 15
# A signal that races with another shows itself now and then only.
CRASHES = 8


def can_raise_limits():
    """CAP_SYS_RESOURCE, without which no host here can give LimitRTPRIO= and LimitMEMLOCK= to anybody."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("CapEff:")[1].split()[0], 16) >> 24 & 1 == 1


def readme(topic):
    """The commands that systemd/README.md gives for a topic, block by block."""
    text = (HERE.parent.parent / "systemd/README.md").read_text()
    rest = text.split(f"\n**{topic}**")[1].split("\n**")[0]
    return rest.split("\n```\n")[1::2]


class Fleet:
    def __init__(self, base, work, first, second):
        self.work, self.second = work, second
        self.shared = work / "shared"
        (self.shared / "records").mkdir(parents=True)
        (self.shared / "records").chmod(0o777)
        for file in ("keeper.bash", "keeper.py", "keeper.js"):
            (self.shared / file).write_bytes((HERE / file).read_bytes())
        for file in (first, second):
            (self.shared / file.name).write_bytes(file.read_bytes())
        self.witness = Witness(self.shared / "records")
        self.redis = [Host(f"r{n}", 10 + n, base, work, self.shared) for n in (1, 2, 3)]
        self.spare = Host("r4", 14, base, work, self.shared)
        self.keepers = [Host(f"k{n}", 20 + n, base, work, self.shared) for n in (1, 2, 3)]
        self.password, self.admin = secrets.token_hex(16), secrets.token_hex(16)
        self.figures = []
        self.passed = self.failed = 0
        self.told = set()
        for host in [*self.redis, self.spare]:
            self.prepare_redis(host)
        for host in self.keepers:
            self.prepare_keepers(host)
        self.first = first

    def prepare_redis(self, host):
        users = (HERE.parent.parent / "config/redis.acl").read_text().replace("CHANGE-ME", self.password)
        host.write("/etc/redis/users.acl", f"{users}user admin on >{self.admin} +acl\n", 0o600)
        run("chroot", str(host.root), "chown", "redis:", "/etc/redis/users.acl")
        # As systemd/README.md says.
        with open(host.root / "etc/redis/redis.conf", "a") as settings:
            settings.write("bind 0.0.0.0\nappendonly yes\nappendfsync always\nsave \"\"\nmaxmemory-policy noeviction\n"
                           "aclfile /etc/redis/users.acl\n")
        link = host.root / "etc/systemd/system/multi-user.target.wants/redis-server.service"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to("/lib/systemd/system/redis-server.service")

    def prepare_keepers(self, host):
        (host.root / "var/log/journal").mkdir(exist_ok=True)  # it outlives a power-off
        host.write("/etc/keeperd/keepers.toml", (HERE / "keepers.toml").read_text())
        host.write("/etc/credstore/keeperd.redis-password", self.password + "\n", 0o600)
        if host.name == "k3":
            host.write("/etc/systemd/system/keeperd.service.d/test.conf", "# One host does without control groups.\n[Service]\nEnvironment=KEEPERD_CGROUP=off\n")

    def boot(self, hosts):
        for host in hosts:
            host.boot()
        for host in hosts:
            host.wait_booted()

    def host(self, name):
        return next(host for host in self.keepers if host.name == name)

    def holders(self, since=None):
        return {keeper: self.witness.holder(keeper, since) for keeper in KEEPERS}

    def all_run(self, within_s):
        since = now_ns()

        def all_live():
            now = self.holders(since)
            return all(now.values()) and now

        return wait_until("all keepers run", within_s, all_live)

    def step(self, title, story):
        began = time.monotonic()
        try:
            story()
            self.judge()
            self.passed += 1
            print(f"ok    {title} ({time.monotonic() - began:.1f} s)", flush=True)
        except (Failed, AssertionError, OSError, ValueError) as error:
            self.failed += 1
            print(f"FAIL  {title}: {type(error).__name__} {error}", flush=True)
            for host in self.keepers:
                if host.init:
                    print(f"      {host.name}:\n{host.journal('-n', '25')}", flush=True)

    def judge(self):
        self.witness.read()
        found, _ = self.witness.alarms()
        new = [alarm for alarm in found if alarm not in self.told]
        self.told.update(new)
        if new:
            raise Failed("; ".join(new))

    def moves(self, what, act, within_s, of="python", politely=False):
        """`act` on the host that holds the keeper `of`: what runs there runs elsewhere, or anew, after it; nothing else is touched.

        Politely: with the keeper's own stop_signal, and with no other.
        """
        before = self.all_run(SOON_S)
        host = self.host(before[of].host)
        held = [keeper for keeper in KEEPERS if before[keeper].host == host.name]
        at = now_ns()
        act(host)

        def moved():
            now = self.holders()
            return all(now[keeper] and now[keeper].token > before[keeper].token for keeper in held) and now

        now = wait_until(f"{held} run anew", within_s, moved)
        for keeper in KEEPERS:
            if keeper not in held and (now[keeper] is None or now[keeper].pid != before[keeper].pid):
                raise Failed(f"{keeper} ran on {before[keeper].host} and was touched")
        for keeper in held:
            if politely and before[keeper].signals != ["SIGINT"]:
                raise Failed(f"{keeper} on {host.name} saw {before[keeper].signals}, and should have seen its stop_signal")
            firsts = [life.first for life in self.witness.of(keeper) if life.token > before[keeper].token]
            gap = (min(firsts) - before[keeper].last) / 1e6
            self.figures.append((what, keeper, before[keeper].host, now[keeper].host, gap, (min(firsts) - at) / 1e6))
        return host

    def unmoved(self, seconds, during=lambda: None):
        before = self.all_run(SOON_S)
        during()
        time.sleep(seconds)
        now = self.all_run(SOON_S)
        for keeper in KEEPERS:
            if now[keeper].pid != before[keeper].pid or now[keeper].token != before[keeper].token:
                raise Failed(f"{keeper} moved from {before[keeper].host} to {now[keeper].host}")

    # --- what is tried -------------------------------------------------------------------------------------------------------------

    def start(self):
        for host in self.keepers:
            said = host.do("apt-get", "install", "-y", "--no-install-recommends", f"/fleet/{self.first.name}")
            if "installed and not started" not in said:
                raise Failed(said)
            if host.show("ActiveState")["ActiveState"] != "inactive":
                raise Failed("the installation started it")
        for host in self.keepers:
            host.do("systemctl", "enable", "--now", "keeperd")
        self.all_run(QUARANTINE_S + SOON_S)

    def outfit(self):
        for host in self.keepers:
            if host.show("ActiveState", "Type", "NRestarts") != {"ActiveState": "active", "Type": "notify", "NRestarts": "0"}:
                raise Failed(str(host.show("ActiveState", "Type", "NRestarts")))
            if "running here" not in host.show("StatusText")["StatusText"]:
                raise Failed(str(host.show("StatusText")))
        for keeper, life in self.all_run(SOON_S).items():
            host = self.host(life.host)
            status = json.loads(host.do("keeperd", "status", keeper, "--json"))
            entry = next(entry for entry in status["keepers"] if entry["name"] == keeper)
            if entry["role"] != "leader" or entry["token"] != life.token:
                raise Failed(str(entry))
            self.fitted_out(host, keeper, life)

    def fitted_out(self, host, keeper, life, realtime=True):
        """Control group, real-time class and memory of a term, and what its keeper must not have."""
        cgroup = host.cgroup_of(life.pid)
        if (f"/keeperd.service/keeperd.{keeper}.{life.token}." in cgroup) != (host.name != "k3"):
            raise Failed(f"{host.name}: {cgroup}")
        host.do("test", "-w", f"/sys/fs/cgroup{cgroup}/cgroup.kill")
        guards = host.do("ps", "-eo", "cls=,pid=,comm=").splitlines()
        guards = [line.split() for line in guards if line.endswith("keeperd-guard")]
        if not guards or (realtime and any(kind != "RR" for kind, _, _ in guards)):
            raise Failed(f"{host.name}: guards are not in the real-time class: {guards}")
        if realtime and "VmLck:\t       0 kB" in host.do("cat", f"/proc/{guards[0][1]}/status"):
            raise Failed(f"{host.name}: the memory of a guard is not locked")
        environment = host.ask("cat", f"/proc/{life.pid}/environ")
        if self.password in environment or "CREDENTIALS_DIRECTORY" in environment:
            raise Failed("the password is in the keeper's environment")
        if "NoNewPrivs:\t1" not in host.ask("cat", f"/proc/{life.pid}/status"):
            raise Failed("the keeper may gain rights")

    def stop(self):
        host = self.moves("systemctl stop", lambda host: host.do("systemctl", "stop", "keeperd"), SOON_S, politely=True)
        said = host.show("ActiveState", "Result")
        if said != {"ActiveState": "inactive", "Result": "success"}:
            raise Failed(str(said))
        host.do("systemctl", "start", "keeperd")

    def restart(self):
        host = self.moves("systemctl restart", lambda host: host.do("systemctl", "restart", "keeperd"), SOON_S, of="node", politely=True)
        if host.show("ActiveState")["ActiveState"] != "active":
            raise Failed(str(host.show("ActiveState")))

    def reload(self):
        self.unmoved(1, lambda: [host.do("systemctl", "reload", "keeperd") for host in self.keepers])
        host = self.host(self.all_run(SOON_S)["bash"].host)
        text = (HERE / "keepers.toml").read_text()
        host.write("/etc/keeperd/keepers.toml", text.replace("ttl = \"4s\"", "ttl = \"4 parsecs\""))
        self.unmoved(1, lambda: host.do("systemctl", "reload", "keeperd"))
        if "the last reload was refused" not in host.show("StatusText")["StatusText"]:
            raise Failed(str(host.show("StatusText")))
        host.write("/etc/keeperd/keepers.toml", text)
        host.do("systemctl", "reload", "keeperd")

    def came_back(self, host, restarts, within_s=SOON_S):
        """systemd has started the daemon again, by itself."""
        def back():
            said = host.show("ActiveState", "NRestarts")
            return said["ActiveState"] == "active" and int(said["NRestarts"]) > restarts

        wait_until(f"{host.name}'s daemon is back", within_s, back)

    def crash(self, what="kill -9 of the daemon", of="python", signal_name="SIGKILL", within_s=SOON_S, slow_guards=False):
        """The daemon ends, or hangs; guards do what is to be done, and systemd starts it again."""
        restarts = {host.name: int(host.show("NRestarts")["NRestarts"]) for host in self.keepers}

        def hit(host):
            # So that systemd comes first: its SIGCONT lets them go on.
            if slow_guards:
                host.do("kill", "-STOP", *host.do("pgrep", "-x", "keeperd-guard").split())
            host.kill_daemon(signal_name)

        host = self.moves(what, hit, within_s, of=of, politely=True)
        self.came_back(host, restarts[host.name], within_s)
        return host

    def kill(self):
        for crash in range(CRASHES):
            slow = crash % 2 == 1
            what = "kill -9 of the daemon" + slow * ", guards stopped"
            self.crash(what, of=KEEPERS[crash % len(KEEPERS)], slow_guards=slow)

    def hang(self):
        host = self.crash("SIGSTOP of the daemon", signal_name="SIGSTOP", within_s=40)
        if "Watchdog timeout" not in host.journal():
            raise Failed("it was not the watchdog")

    def hang_in_lease(self):
        host = self.keepers[0]
        what = "SIGSTOP of the daemon, watchdog 2 s, lease 20 s"
        with self.other(host, "WatchdogSec=2s", ttl="20s"):
            self.gather(host)
            self.crash(what, signal_name="SIGSTOP")
        for said, keeper, _, _, gap, _ in self.figures:
            if said == what and gap > 1000 * TTL_S:
                raise Failed(f"{keeper} was away for {gap} ms: its lease was not released")

    def gather(self, host):
        """Every keeper to this host."""
        others = [other for other in self.keepers if other is not host]
        for other in others:
            other.do("keeperd", "drain")
        since = now_ns()
        wait_until(f"{host.name} has them all", SOON_S, lambda: all(life and life.host == host.name for life in self.holders(since).values()))
        for other in others:
            other.do("keeperd", "resume", "--all")

    def as_user(self):
        """With the drop-in of the README: nothing of keeperd is root."""
        host = self.host("k2")
        with self.other(host, "User=keeperd\nCapabilityBoundingSet="):
            self.is_no_root(host)

    def is_no_root(self, host):
        self.gather(host)
        if set(host.do("ps", "-o", "user=", "-C", "keeperd,keeperd-guard").split()) != {"keeperd"}:
            raise Failed(host.do("ps", "-eo", "user,pid,comm"))
        for keeper, life in self.all_run(SOON_S).items():
            self.fitted_out(host, keeper, life, can_raise_limits())
        self.crash("kill -9 of the daemon, not root")

    def kill_without_cgroups(self):
        self.gather(self.host("k3"))
        self.crash("kill -9 of the daemon, no control groups")

    def power_off(self):
        host = self.moves("power-off of the host", lambda host: host.power_off(), SOON_S + TTL_S, of="node")
        self.boot([host])
        wait_until("keeperd runs after the boot", SOON_S, lambda: host.show("ActiveState")["ActiveState"] == "active", 0.2)

    def shut_down(self):
        """In order: systemd stops keeperd before the network goes."""
        def off(host):
            host.do("systemctl", "poweroff")
            host.wait_off()

        host = self.moves("systemctl poweroff", off, SOON_S + TTL_S)
        for what, keeper, _, _, gap, _ in self.figures:
            if what == "systemctl poweroff" and gap > 1000 * TTL_S / 2:
                raise Failed(f"{keeper} was away for {gap} ms: its lease was not released")
        self.boot([host])
        wait_until("keeperd runs after the boot", SOON_S, lambda: host.show("ActiveState")["ActiveState"] == "active", 0.2)

    @contextmanager
    def other(self, host, drop_in, more="", ttl="4s"):
        """One host with a drop-in for its unit, and with more, or another ttl, in its configuration."""
        file = "/etc/systemd/system/keeperd.service.d/other.conf"
        text = (HERE / "keepers.toml").read_text()
        host.write(file, f"[Service]\n{drop_in}\n")
        host.write("/etc/keeperd/keepers.toml", text.replace('ttl = "4s"', f'ttl = "{ttl}"') + more)
        host.do("systemctl", "daemon-reload")
        host.do("systemctl", "restart", "keeperd")
        try:
            yield
        finally:
            host.write("/etc/keeperd/keepers.toml", text)
            (host.root / file.lstrip("/")).unlink()
            host.do("systemctl", "daemon-reload")
            host.do("systemctl", "restart", "keeperd")

    def births(self):
        """What it costs that children are moved into the cgroup of their term, where clone3 is unknown."""
        host = self.keepers[0]
        for value in ("yes", "no"):
            with self.other(host, f"RestrictNamespaces={value}", "\n[[keeper]]\nname = \"births\"\ncommand = [\"sleep\", \"1000\"]\n"):
                for _ in range(BIRTHS):
                    wait_until("it runs", SOON_S, lambda: host.ask("pgrep", "-fx", "sleep 1000").strip())
                    # No other host has this keeper: nobody to wait for.
                    host.ask("keeperd", "pause", "births", "--timeout", "500ms")
                    host.do("keeperd", "resume", "births", "--timeout", f"{SOON_S}s")
                told = host.ask("journalctl", "-u", "keeperd", "KEEPERD_KEEPER=births", "-o", "json", "-n", str(20 * BIRTHS)).splitlines()
            won, took = None, []
            for entry in map(json.loads, told):
                at = int(entry["_SOURCE_REALTIME_TIMESTAMP"])
                if entry["MESSAGE"].startswith("leader: won"):
                    won = at
                elif entry["MESSAGE"].startswith("child runs"):
                    took.append((at - won) / 1000)
            took = sorted(took[-BIRTHS:])
            print(f"      from the election to the child, RestrictNamespaces={value}: "
                  f"median {took[len(took) // 2]:.1f} ms, longest {took[-1]:.1f} ms, n {len(took)}", flush=True)

    def isolated(self):
        """What the README says `isolate = "pid"` needs."""
        host = self.keepers[0]
        drop_in = "CapabilityBoundingSet=CAP_SYS_ADMIN\nRestrictNamespaces=no\nSystemCallFilter=@mount"
        with self.other(host, drop_in, "\n[[keeper]]\nname = \"isolated\"\ncommand = [\"sleep\", \"1000\"]\nisolate = \"pid\"\n"):
            self.is_isolated(host)

    def is_isolated(self, host):
        wait_until("it runs", SOON_S, lambda: host.ask("pgrep", "-fx", "sleep 1000").strip())
        namespaces = host.do("cat", f"/proc/{host.ask('pgrep', '-fx', 'sleep 1000').split()[0]}/status").split("NSpid:")[1].splitlines()[0]
        # Outside, on the host, and in its own.
        if len(namespaces.split()) < 2 or namespaces.split()[-1] == namespaces.split()[-2]:
            raise Failed(f"it is not in a namespace of its own: {namespaces}")

    def cut(self, way):
        host = self.moves(f"network of the host cut, {way}", lambda host: host.cut(way), SOON_S + TTL_S)
        host.heal()
        time.sleep(TTL_S)
        self.judge()

    def cut_one_node(self):
        def both_ways():
            self.redis[0].cut("both")

        self.unmoved(3 * TTL_S, both_ways)
        self.redis[0].heal()
        self.unmoved(TTL_S)

    def cut_two_nodes(self):
        for node in self.redis[:2]:
            node.cut("both")
        wait_until("nobody runs without a quorum", SOON_S + TTL_S, lambda: not any(self.holders().values()))
        time.sleep(TTL_S)
        if any(self.holders().values()):
            raise Failed(f"{self.holders()} run without a quorum")
        at = now_ns()
        for node in self.redis[:2]:
            node.heal()
        now = self.all_run(SOON_S + TTL_S)
        self.figures.append(("a quorum of Redis hosts back", "all", "-", "-", (max(life.first for life in now.values()) - at) / 1e6, 0))

    def node_loses_data(self):
        def reboot():
            node = self.redis[2]
            node.power_off()
            node.wipe("/var/lib/redis")
            run("install", "-d", "-m", "755", str(node.root / "var/lib/redis"))
            run("chroot", str(node.root), "chown", "redis:redis", "/var/lib/redis")
            self.boot([node])
            self.nodes_are(self.keepers[0], "serving", "serving", "quarantined")

        self.unmoved(QUARANTINE_S, reboot)
        # A standing connection hears of the end when it next asks.
        self.unmoved(0, lambda: self.nodes_are(self.keepers[0], "serving", "serving", "serving"))

    @staticmethod
    def nodes_are(host, *wanted, within_s=SOON_S):
        def states():
            return [node["state"] for node in json.loads(host.do("keeperd", "status", "--json"))["nodes"]]

        wait_until(f"{host.name} sees its nodes {wanted}", within_s, lambda: states() == list(wanted))

    @staticmethod
    def follow(commands, host, **variables):
        """As an operator does who follows the README."""
        host.do("env", *(f"{name}={value}" for name, value in variables.items()), "bash", "-euo", "pipefail", "-c", commands)

    def new_password(self):
        beside, use, alone = readme("A new password")
        words = {"OLD": self.password, "NEW": secrets.token_hex(16), "REDISCLI_AUTH": self.admin}

        def on_each_node(commands):
            for node in self.redis:
                self.follow(commands, node, **words)
                for host in self.keepers:
                    self.nodes_are(host, "serving", "serving", "serving")

        self.unmoved(1, lambda: on_each_node(beside))
        for host in self.keepers:
            self.follow(use, host, **words)
            self.all_run(SOON_S)
        self.unmoved(1, lambda: on_each_node(alone))
        for node in self.redis:
            said = node.ask("env", f"REDISCLI_AUTH={self.password}", "redis-cli", "--user", "keeperd", "PING")
            if "PONG" in said:
                raise Failed(f"{node.name} still takes the old password")
        self.password = words["NEW"]

    def node_replaced(self):
        off, use = readme("A Redis node replaced.")
        words = {"OLD": self.redis[2].address, "NEW": self.spare.address}
        users = self.redis[0].do("cat", "/etc/redis/users.acl")
        self.spare.write("/etc/redis/users.acl", users, 0o600)
        self.boot([self.spare])
        self.unmoved(TTL_S, lambda: self.follow(off, self.redis[2]))
        for host in self.keepers:
            self.follow(use, host, **words)
            self.all_run(SOON_S)
        for host in self.keepers:
            self.nodes_are(host, "serving", "serving", "serving", within_s=QUARANTINE_S + SOON_S)
        # It votes: without it two would be one.
        self.unmoved(TTL_S, lambda: self.redis[0].cut("both"))
        self.redis[0].heal()

    def upgrade(self):
        """Host by host; each keeper moves, and no host is left without the new version."""
        for host in self.keepers:
            before = self.all_run(SOON_S)
            host.do("apt-get", "install", "-y", "--no-install-recommends", f"/fleet/{self.second.name}")
            wait_until("keeperd runs after the upgrade", SOON_S, lambda: host.show("ActiveState")["ActiveState"] == "active")
            if "0.1.0-2" not in host.do("dpkg-query", "--show", "keeperd"):
                raise Failed("it was not upgraded")
            self.all_run(SOON_S)
            for keeper in KEEPERS:
                later = [life.first for life in self.witness.of(keeper) if life.token > before[keeper].token]
                if before[keeper].host == host.name:
                    gap = (min(later) - before[keeper].last) / 1e6
                    self.figures.append(("upgrade of the package", keeper, host.name, self.holders()[keeper].host, gap, 0))

    def refused_upgrade(self):
        """A configuration that the new version does not accept: the old one runs on."""
        host = self.host(self.all_run(SOON_S)["python"].host)
        text = (HERE / "keepers.toml").read_text()
        host.write("/etc/keeperd/keepers.toml", text + "\n[[keeper]]\nname = \"python\"\n")
        self.unmoved(1, lambda: host.do("apt-get", "install", "-y", "--reinstall", f"/fleet/{self.second.name}"))
        host.write("/etc/keeperd/keepers.toml", text)

    def reasons(self):
        """Who won each term, with which votes; and why each ended whose daemon lived to tell."""
        told_ends = 0
        for life in self.witness.lives.values():
            told = self.host(life.host).journal(f"KEEPERD_KEEPER={life.keeper}", "-g", f"token={life.token} ")
            if "leader: won the election" not in told:
                raise Failed(f"nobody says how {life.keeper} came to {life.host}: {told}")
            told_ends += "stepping_down: " in told
        if told_ends * 3 < len(self.witness.lives):
            raise Failed(f"only {told_ends} ends are told")

    def stop_all(self):
        for host in self.keepers:
            host.do("systemctl", "stop", "keeperd")
            if host.show("Result")["Result"] != "success":
                raise Failed(str(host.show("Result")))
        time.sleep(0.5)
        if any(self.holders().values()):
            raise Failed("keepers outlive all daemons")
        for host in self.keepers:
            left = host.ask("pgrep", "-af", "/fleet/keeper|keeperd")
            if left:
                raise Failed(f"{host.name}: {left}")

    def purge(self):
        for host in self.keepers:
            host.do("apt-get", "purge", "-y", "keeperd")
            if host.ask("systemctl", "list-unit-files", "keeperd.service").count("keeperd.service"):
                raise Failed("the unit is still there")

    def tell(self):
        print(f"\n{'what':<44} {'keeper':<8} {'from':<4} {'to':<4} {'away, ms':>9} {'after, ms':>10}")
        for what, keeper, old, new, gap, after in self.figures:
            print(f"{what:<44} {keeper:<8} {old:<4} {new:<4} {gap:>9.0f} {after:>10.0f}")
        _, overlap_ms = self.witness.alarms()
        lives = list(self.witness.lives.values())
        terms = len({(life.keeper, life.token) for life in lives})
        print(f"\n{len(lives)} lives in {terms} terms, longest overlap {overlap_ms:.1f} ms")


def main():
    arguments = argparse.ArgumentParser()
    for name in ("--base", "--work", "--first", "--second"):
        arguments.add_argument(name, type=Path, required=True)
    arguments.add_argument("--only", help="steps whose title contains this, after the start")
    asked = arguments.parse_args()
    make_bridge()
    fleet = Fleet(asked.base, asked.work, asked.first, asked.second)
    steps = [
        ("the package is installed on three hosts; started, each keeper runs on one", fleet.start),
        ("units are active, each term has a control group (but where there is none), no secret is handed on", fleet.outfit),
        ("systemctl stop hands over, and the keeper sees its own stop_signal alone", fleet.stop),
        ("systemctl restart hands over", fleet.restart),
        ("systemctl reload moves nothing; a wrong file is refused and says so", fleet.reload),
        (f"kill -9 of the daemon, {CRASHES} times: handed over by the guards, started again by systemd", fleet.kill),
        ("the same where there are no control groups", fleet.kill_without_cgroups),
        ("with User= nothing of keeperd is root, and it does the same", fleet.as_user),
        ("a stopped daemon: its lease ends, then the watchdog", fleet.hang),
        ("a stopped daemon: the watchdog, long before its lease ends", fleet.hang_in_lease),
        ("power-off of a keeper host", fleet.power_off),
        ("systemctl poweroff of a keeper host: handed over before the network goes", fleet.shut_down),
        ("a keeper with isolate = \"pid\" runs with the drop-in that the README gives", fleet.isolated),
        ("terms are born in their cgroup with RestrictNamespaces=no, else moved there", fleet.births),
        ("the network of the holder is cut", lambda: fleet.cut("both")),
        ("it hears nothing", lambda: fleet.cut("in")),
        ("nobody hears it", lambda: fleet.cut("out")),
        ("one Redis host is cut off: nothing moves", fleet.cut_one_node),
        ("two Redis hosts are cut off: nobody runs until they are back", fleet.cut_two_nodes),
        ("a Redis host is rebooted without its data: nothing moves, and it votes again after its quarantine", fleet.node_loses_data),
        ("the package is upgraded under load, host by host", fleet.upgrade),
        ("an upgrade whose configuration is refused touches nothing", fleet.refused_upgrade),
        ("the password is changed as the README says: nothing moves but where keeperd is restarted", fleet.new_password),
        ("a Redis node is replaced as the README says: nothing moves but where keeperd is restarted", fleet.node_replaced),
        ("the journal tells who won each term and why it ended", fleet.reasons),
        ("all are stopped, and nothing is left", fleet.stop_all),
        ("the package is purged", fleet.purge),
    ]
    try:
        fleet.boot(fleet.redis + fleet.keepers)
        print(f"six hosts have booted: {fleet.keepers[0].do('uname', '-r').strip()}, "
              f"{fleet.keepers[0].do('systemctl', '--version').splitlines()[0]}", flush=True)
        for title, story in steps:
            if asked.only is None or story == fleet.start or asked.only in title:
                fleet.step(title, story)
        fleet.tell()
    finally:
        for host in [*fleet.redis, fleet.spare, *fleet.keepers]:
            if host.init:
                host.power_off()
        # Not those of the overlays: they go with this process's mounts.
        for host in [*fleet.redis, fleet.spare, *fleet.keepers]:
            for cgroup in filter(Path.exists, host.cgroups):
                for folder in sorted(cgroup.rglob("*/"), key=lambda path: -len(path.parts)):
                    folder.rmdir()
                cgroup.rmdir()
    print(f"{fleet.passed} passed, {fleet.failed} failed")
    return fleet.failed > 0


if __name__ == "__main__":
    sys.exit(main())
