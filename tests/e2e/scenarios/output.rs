//! What children write, into every sink, and what no sink may do: cost a lease, memory without end, or time.

use super::{Scenario, scenario};
use crate::checker::Life;
use crate::clock::{boot_ns, ms, nanos};
use crate::procs;
use crate::step::{Step, check, failure, skipped};
use crate::trial::{KEEPER, Setup, Trial, VALID, millis, secs};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::io::Read;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

pub const ALL: &[Scenario] = &[
    scenario(
        "output_file",
        "into a file: every byte of both streams, a 1 MB line and what is not UTF-8",
        file,
    ),
    scenario(
        "output_rotation",
        "a shouting child and a small file: rotated, bounded, and the lease is kept",
        rotation,
    ),
    scenario(
        "output_missing_folder",
        "the file's folder comes later: one warning, and the file says what is missing",
        missing_folder,
    ),
    scenario(
        "output_full_disk",
        "the disk is full: lines are lost and counted, the keeper is not; then there is room again",
        full_disk,
    ),
    scenario(
        "output_journal",
        "into the journal: its own identifier, token, stream and priority; any bytes",
        journal,
    ),
    scenario(
        "output_journal_stuck",
        "the journal takes nothing while the child shouts: no lease lost, the gap is marked",
        journal_stuck,
    ),
    scenario("output_inherit", "inherit: past the daemon, which says so", inherit),
    scenario("output_null", "null: the child has /dev/null, and no pipe", null),
    scenario(
        "output_deaf_log",
        "nobody reads the daemon's log while its child shouts: logs still shows the last lines",
        deaf_log,
    ),
    scenario(
        "output_last_lines",
        "a crash: its last lines are in the log, in status --lines and in logs",
        last_lines,
    ),
    scenario("output_history", "status tells every run and why it ended", history),
    scenario("output_follow", "logs -f over restarts of the child, until the daemon ends", follow),
    scenario(
        "output_slow_follower",
        "a follower that does not read while the child shouts: told what it lost, memory bounded",
        slow_follower,
    ),
    scenario(
        "output_many_followers",
        "more followers than there is room for: refused with a word, status answers, a place comes free",
        many_followers,
    ),
    scenario(
        "output_held_pipe",
        "a grandchild that holds the pipe and goes on writing delays neither a restart nor the end",
        held_pipe,
    ),
];

const OWN_FILE: &str = "output = { file = \"out.log\", max_size = \"64MiB\", keep = 1 }";
const SMALL_FILE: &str = "output = { file = \"out.log\", max_size = \"1MiB\", keep = 2 }";
const QUICK_RESTARTS: &str = "restart_delay = \"50ms\"\nrestart_delay_max = \"100ms\"\ngive_up_after = 100";

/// One host: its file is nobody else's.
fn alone(child: Vec<&'static str>, keeper_lines: &'static str) -> Setup {
    Setup { hosts: vec!["a"], child, keeper_lines, ..Setup::default() }
}

/// The answer to a command about host a, which must succeed.
fn ask(t: &mut Trial, arguments: &[&str]) -> Step<String> {
    let output = t.daemon("a")?.command(arguments).output()?;
    let problem = || format!("{arguments:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    check(output.status.success(), problem())?;
    Ok(String::from_utf8(output.stdout)?)
}

/// Until `holds`, while the child must run on.
fn until(
    t: &mut Trial,
    child: &Life,
    within: Duration,
    what: &str,
    mut holds: impl FnMut(&mut Trial) -> Step<bool>,
) -> Step {
    let since = boot_ns();
    while !holds(t)? {
        check(boot_ns() < since + nanos(within), format!("not within {}: {what}", ms(nanos(within))))?;
        t.runs_on(child, millis(100))?;
    }
    Ok(())
}

fn memory(t: &mut Trial) -> Step<u64> {
    let daemon = t.daemon("a")?.pid();
    procs::rss_kib(daemon).ok_or_else(|| failure("the daemon is gone"))
}

/// The child runs on for `span`, and the daemon's memory does not grow by more than 32 MiB.
fn bounded(t: &mut Trial, child: &Life, span: Duration) -> Step {
    let before = memory(t)?;
    let (mut most, end) = (before, boot_ns() + nanos(span));
    while boot_ns() < end {
        t.runs_on(child, millis(250))?;
        most = most.max(memory(t)?);
    }
    t.figure(format!("daemon's memory {before} KiB, at most {most} KiB"));
    check(most < before + 32 * 1024, "the daemon's memory grows with what its child says")
}

fn dropped(t: &mut Trial) -> Step<u64> {
    let status = t.daemon("a")?.keeper_status(KEEPER)?;
    status["output"]["dropped_lines"].as_u64().ok_or_else(|| failure(format!("no output in {status}")))
}

// ── file ──

/// A record of the file: stream, and the bytes of whole lines put together again.
fn records(text: &[u8]) -> Step<Vec<(String, Vec<u8>)>> {
    let mut lines = Vec::new();
    let mut begun: Vec<(String, Vec<u8>)> = Vec::new();
    for record in text.split(|byte| *byte == b'\n').filter(|record| !record.is_empty()) {
        let mut parts = record.splitn(4, |byte| *byte == b' ');
        let mut word = || parts.next().map(<[u8]>::to_vec);
        let (Some(time), Some(stream), Some(tag), Some(bytes)) = (word(), word(), word(), word()) else {
            return Err(failure(format!("not a record: {}", String::from_utf8_lossy(record))));
        };
        let (stream, time) = (String::from_utf8(stream)?, String::from_utf8(time)?);
        check(time.ends_with('Z') && time.len() == 27, format!("not a time: {time}"))?;
        let place = begun.iter().position(|(other, _)| *other == stream);
        let mut whole = place.map_or_else(Vec::new, |place| begun.swap_remove(place).1);
        whole.extend(bytes);
        match tag.as_slice() {
            b"P" => begun.push((stream, whole)),
            b"F" => lines.push((stream, whole)),
            other => return Err(failure(format!("not a tag: {other:?}"))),
        }
    }
    Ok(lines)
}

fn file(t: &mut Trial) -> Step {
    let script = "trap 'echo bye; exit' TERM; \
        i=0; while [ $i -lt 500 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done; \
        head -c 1000000 /dev/zero | tr '\\0' x; echo; printf 'not \\377 utf-8 \\033[31m\\n'; printf 'no end'; \
        while :; do sleep 0.01; done";
    // Time for its last words: the child lingers for less than stop_timeout.
    let setup = Setup { ttl: "10s", ..alone(vec!["--linger", "1200", "--run", script], OWN_FILE) };
    let child = t.begin(setup)?;
    let path = t.dir().join("out.log");
    let all =
        |path: &Path| -> Step<Vec<(String, Vec<u8>)>> { records(&std::fs::read(path).unwrap_or_default()) };
    // Of two streams nobody knows which is read first.
    until(t, &child, secs(20), "the last line, which has no end, and the other stream's", |_| {
        let lines = all(&path)?;
        let has = |last: &[u8]| lines.iter().any(|(_, line)| line == last);
        Ok(has(b"no end") && has(b"err 499"))
    })?;
    let lines = all(&path)?;
    let of = |stream: &str| -> Vec<&[u8]> {
        lines.iter().filter(|(s, _)| s == stream).map(|(_, line)| line.as_slice()).collect()
    };
    let (out, err) = (of("stdout"), of("stderr"));
    let numbered = |word: &str| (0..500).map(|i| format!("{word} {i}").into_bytes()).collect::<Vec<_>>();
    check(err == numbered("err"), format!("stderr has {} lines", err.len()))?;
    check(out[..500] == numbered("out"), "stdout does not begin with its 500 lines")?;
    check(out[500].len() == 1_000_000 && out[500].iter().all(|b| *b == b'x'), "the long line is not whole")?;
    check(out[501] == b"not \xff utf-8 \x1b[31m" && out[502] == b"no end", "bytes were changed")?;
    check(dropped(t)? == 0, "lines were dropped")?;
    t.runs_on(&child, millis(500))?;
    // What is written on the way out is not lost.
    t.signal("a", Signal::SIGTERM)?;
    t.daemon("a")?.await_exit(secs(10))?;
    let said = all(&path)?.contains(&("stdout".to_owned(), b"bye".to_vec()));
    check(said, "the last words of the child are not in the file")
}

fn rotation(t: &mut Trial) -> Step {
    let child = t.begin(alone(vec!["--shout"], SMALL_FILE))?;
    t.runs_on(&child, secs(1))?;
    bounded(t, &child, secs(4))?;
    let names = |t: &Trial| -> Step<std::collections::BTreeSet<String>> {
        let names =
            std::fs::read_dir(t.dir())?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        let names: Step<std::collections::BTreeSet<String>> = names.collect();
        Ok(names?.into_iter().filter(|name| name.starts_with("out.log")).collect())
    };
    // Not in the middle of a rotation.
    let all = ["out.log", "out.log.1", "out.log.2"].map(str::to_owned).into();
    until(t, &child, secs(10), "three files", |t| Ok(names(t)? == all))?;
    let dropped = dropped(t)?;
    t.signal("a", Signal::SIGTERM)?;
    t.daemon("a")?.await_exit(secs(10))?;
    for name in names(t)? {
        check(all.contains(&name), format!("one file too many: {name}"))?;
        let size = std::fs::metadata(t.dir().join(&name))?.len();
        check(size <= 1 << 20, format!("{name} is too large: {size}"))?;
    }
    t.figure(format!("{dropped} lines dropped"));
    Ok(())
}

fn missing_folder(t: &mut Trial) -> Step {
    let lines = "output = { file = \"later/out.log\" }";
    let child = t.begin(alone(vec!["--run", "while :; do echo tick; sleep 0.02; done"], lines))?;
    until(t, &child, secs(10), "lines are counted as lost", |t| Ok(dropped(t)? > 10))?;
    t.log_says("a", "output cannot be written")?;
    t.runs_on(&child, millis(1500))?;
    let warned = t.log_of("a")?.matches("output cannot be written").count();
    check(warned == 1, format!("{warned} warnings instead of one"))?;
    std::fs::create_dir(t.dir().join("later"))?;
    let path = t.dir().join("later/out.log");
    let text = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
    until(t, &child, secs(10), "lines in the file", |_| {
        Ok(text(&path).matches(" stdout F tick").count() > 20)
    })?;
    check(text(&path).contains("lines could not be written here"), "the file does not say what is missing")?;
    t.log_says("a", "output is written again")
}

/// A disk of its own, small; gone with the value.
struct Disk(std::path::PathBuf);

impl Disk {
    fn mount(path: &Path) -> Step<Disk> {
        std::fs::create_dir(path)?;
        let mount = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=512k", "keeperd-e2e"])
            .arg(path)
            .stderr(Stdio::null())
            .status();
        match mount {
            Ok(status) if status.success() => Ok(Disk(path.to_owned())),
            Ok(_) | Err(_) => Err(skipped("no small disk can be mounted here: that takes root")),
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        std::process::Command::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}

fn full_disk(t: &mut Trial) -> Step {
    let _disk = Disk::mount(&t.dir().join("disk"))?;
    let lines = "output = { file = \"disk/out.log\", max_size = \"64MiB\" }";
    let child = t.begin(alone(vec!["--shout"], lines))?;
    until(t, &child, secs(10), "lines are counted as lost", |t| Ok(dropped(t)? > 100))?;
    bounded(t, &child, secs(2))?;
    t.log_says("a", "output cannot be written")?;
    let path = t.dir().join("disk/out.log");
    // What the disk takes of a line is taken back at once, but not before it is seen.
    until(t, &child, secs(5), "no line is torn", |_| Ok(records(&std::fs::read(&path)?).is_ok()))?;
    // Somebody makes room.
    std::fs::remove_file(&path)?;
    until(t, &child, secs(10), "it is written again", |t| {
        Ok(t.log_of("a")?.contains("output is written again"))
    })
}

// ── journal ──

/// A fake of the journal's socket.
struct Journal(UnixDatagram);

/// Fields of an entry, by name.
type Entry = std::collections::BTreeMap<String, Vec<u8>>;

impl Journal {
    fn open(t: &Trial) -> Step<Journal> {
        let socket = UnixDatagram::bind(t.dir().join("journal.sock"))?;
        socket.set_read_timeout(Some(millis(20)))?;
        Ok(Journal(socket))
    }

    fn next(&self) -> Step<Option<Entry>> {
        let mut datagram = vec![0; 64 * 1024];
        match self.0.recv(&mut datagram) {
            Ok(length) => parse_entry(&datagram[..length]).map(Some),
            Err(_) => Ok(None),
        }
    }
}

/// As <https://systemd.io/JOURNAL_NATIVE_PROTOCOL/> says, written from it and not from keeperd.
fn parse_entry(mut rest: &[u8]) -> Step<Entry> {
    let mut entry = Entry::new();
    let torn = || failure("a torn entry");
    while !rest.is_empty() {
        let end = rest.iter().position(|byte| *byte == b'\n').ok_or_else(torn)?;
        let (line, after) = (&rest[..end], &rest[end + 1..]);
        let (name, value) = match line.iter().position(|byte| *byte == b'=') {
            Some(equals) => {
                rest = after;
                (&line[..equals], line[equals + 1..].to_vec())
            }
            None => {
                let (length, after) = after.split_first_chunk::<8>().ok_or_else(torn)?;
                let length = usize::try_from(u64::from_le_bytes(*length))?;
                let value = after.get(..length).ok_or_else(torn)?.to_vec();
                check(after.get(length) == Some(&b'\n'), "a value without its end")?;
                rest = &after[length + 1..];
                (line, value)
            }
        };
        entry.insert(String::from_utf8(name.to_vec())?, value);
    }
    Ok(entry)
}

const TO_JOURNAL: &str = "output = \"journal\"";

fn journal(t: &mut Trial) -> Step {
    let script = "echo plain; echo '<3>bad' >&2; printf 'a\\377b\\033\\n'; head -c 40000 /dev/zero | tr '\\0' y; echo; echo done";
    t.prepare(Setup { journal: true, ..alone(vec!["--run", script], TO_JOURNAL) })?;
    let journal = Journal::open(t)?;
    t.start_nodes()?;
    t.start_all()?;
    let child = t.first_child()?;
    let mut entries: Vec<Entry> = Vec::new();
    until(t, &child, secs(10), "all entries", |_| {
        while let Some(entry) = journal.next()? {
            entries.push(entry);
        }
        Ok(entries.len() >= 7)
    })?;
    let (token, name) = (child.token.to_string().into_bytes(), KEEPER.as_bytes().to_vec());
    for entry in &entries {
        let same = entry["SYSLOG_IDENTIFIER"] == name && entry["KEEPERD_KEEPER"] == name;
        check(
            same && entry["KEEPERD_FENCING_TOKEN"] == token,
            format!("an entry of somebody else: {entry:?}"),
        )?;
    }
    let said = |message: &[u8], priority: &[u8], stream: &[u8]| {
        entries.iter().any(|entry| {
            entry["MESSAGE"] == message && entry["PRIORITY"] == priority && entry["KEEPERD_STREAM"] == stream
        })
    };
    check(said(b"plain", b"6", b"stdout"), "no plain line")?;
    check(said(b"bad", b"3", b"stderr"), "no line with a priority")?;
    check(said(b"a\xffb\x1b", b"6", b"stdout"), "bytes were changed")?;
    let long: Vec<&Entry> = entries.iter().filter(|entry| entry["MESSAGE"].starts_with(b"yy")).collect();
    let lengths: Vec<usize> = long.iter().map(|entry| entry["MESSAGE"].len()).collect();
    let marks: Vec<bool> = long.iter().map(|entry| entry.contains_key("KEEPERD_CONTINUES")).collect();
    check(lengths == [16384, 16384, 7232] && marks == [true, true, false], format!("{lengths:?} {marks:?}"))
}

fn journal_stuck(t: &mut Trial) -> Step {
    t.prepare(Setup { journal: true, ..alone(vec!["--shout"], TO_JOURNAL) })?;
    let journal = Journal::open(t)?;
    t.start_nodes()?;
    t.start_all()?;
    let child = t.first_child()?;
    bounded(t, &child, secs(3))?;
    until(t, &child, secs(10), "lines are counted as lost", |t| Ok(dropped(t)? > 0))?;
    let mut seen = 0;
    until(t, &child, secs(15), "an entry that names the gap", |_| {
        let since = boot_ns();
        while boot_ns() < since + nanos(millis(500)) {
            let Some(entry) = journal.next()? else { break };
            seen += 1;
            if String::from_utf8_lossy(&entry["MESSAGE"]).ends_with("lines were dropped here") {
                return Ok(true);
            }
        }
        Ok(false)
    })?;
    t.figure(format!("gap found after {seen} entries"));
    Ok(())
}

// ── past the daemon ──

fn inherit(t: &mut Trial) -> Step {
    let child = t.begin(alone(vec!["--run", "echo straight through >&2"], "output = \"inherit\""))?;
    until(t, &child, secs(10), "the child's own line on the daemon's stderr", |t| {
        // The first word is the instant at which the suite saw the line.
        Ok(t.log_of("a")?
            .lines()
            .any(|line| line.split_once(' ').is_some_and(|(_, l)| l == "straight through")))
    })?;
    let output = t.daemon("a")?.command(&["logs", KEEPER]).output()?;
    let hint = String::from_utf8_lossy(&output.stderr).into_owned();
    check(output.status.success() && hint.contains("inherit"), format!("logs says {hint:?}"))?;
    let status = t.daemon("a")?.keeper_status(KEEPER)?;
    check(status["output"]["to"] == "inherit", format!("{status}"))
}

fn null(t: &mut Trial) -> Step {
    let child = t.begin(alone(vec!["--shout"], "output = \"null\""))?;
    for descriptor in ["0", "1", "2"] {
        let target = std::fs::read_link(format!("/proc/{}/fd/{descriptor}", child.pid))?;
        check(target == Path::new("/dev/null"), format!("descriptor {descriptor} is {target:?}"))?;
    }
    t.runs_on(&child, secs(1))?;
    check(ask(t, &["logs", KEEPER])?.is_empty(), "lines from nowhere")
}

fn deaf_log(t: &mut Trial) -> Step {
    let child = t.begin(Setup { deaf_stderr: true, ..alone(vec!["--shout"], "") })?;
    bounded(t, &child, secs(3))?;
    until(t, &child, secs(10), "lines are counted as lost, for nobody reads", |t| Ok(dropped(t)? > 0))?;
    let lines = ask(t, &["logs", KEEPER])?;
    check(
        lines.contains("[line continues]") && lines.contains("x"),
        format!("{} bytes of lines", lines.len()),
    )
}

// ── last lines and history ──

fn last_lines(t: &mut Trial) -> Step {
    // Only the script knows when it has said everything.
    let script = "echo step one; echo 'cannot open the door' >&2; printf 'and no end'; kill -USR1 $PPID";
    let slow_restarts = "restart_delay = \"500ms\"\nrestart_delay_max = \"500ms\"\ngive_up_after = 100";
    t.begin(alone(vec!["--run", script], slow_restarts))?;
    let crash = "child failed (signal SIGUSR1)";
    t.log_says("a", crash)?;
    let log = t.log_of("a")?;
    let last = log.lines().find(|line| line.contains(crash)).unwrap_or_default();
    let words = ["step one", "cannot open the door", "and no end"];
    check(words.iter().all(|word| last.contains(word)), format!("the line of the crash: {last:?}"))?;
    let mut shown = String::new();
    t.until("the status tells of the run that has ended", |t| {
        shown = ask(t, &["status", KEEPER, "--lines"])?;
        Ok(shown.contains("exited"))
    })?;
    let fits = words.iter().all(|word| shown.contains(word)) && shown.contains("SIGUSR1");
    check(fits && shown.contains("LAST LINES"), shown)?;
    let document: Value = serde_json::from_str(&ask(t, &["status", KEEPER, "--json", "--lines"])?)?;
    let lines = document["keepers"][0]["lines"].as_array().cloned().unwrap_or_default();
    let told = |stream: &str, text: &str| lines.iter().any(|l| l["stream"] == stream && l["line"] == text);
    check(told("stdout", "step one") && told("stderr", "cannot open the door"), format!("{lines:?}"))?;
    let logs = ask(t, &["logs", KEEPER])?;
    check(logs.contains("| step one") && logs.contains("! cannot open the door"), logs)?;
    let unknown = t.daemon("a")?.command(&["logs", "nobody"]).output()?.status;
    check(unknown.code() == Some(4), format!("logs of an unknown keeper: {unknown}"))
}

/// Reason, exit code, signal.
type Run = (String, Option<i64>, Option<i64>);

/// The runs of host a.
fn runs(t: &mut Trial) -> Step<Vec<Run>> {
    let status = t.daemon("a")?.keeper_status(KEEPER)?;
    let runs = status["history"].as_array().ok_or_else(|| failure(format!("no history in {status}")))?;
    let text = |run: &Value| run["reason"].as_str().unwrap_or("runs").to_owned();
    Ok(runs.iter().map(|run| (text(run), run["code"].as_i64(), run["signal"].as_i64())).collect())
}

/// What happens is told a little later.
fn until_told(t: &mut Trial, what: &str, told: impl Fn(&[Run]) -> bool) -> Step {
    let mut seen = Vec::new();
    let shown = t.until(what, |t| {
        seen = runs(t)?;
        Ok(told(&seen))
    });
    shown.map_err(|f| failure(format!("{}: {seen:?}", f.why)))
}

fn history(t: &mut Trial) -> Step {
    let lines = "restart_delay = \"50ms\"\nrestart_delay_max = \"100ms\"\n\
        give_up_after = 3\ngive_up_window = \"1m\"\ncooldown = \"1s\"";
    let first = t.begin(Setup { proxied: true, ..alone(Vec::new(), lines) })?;
    let running = || ("runs".to_owned(), None, None);
    until_told(t, "a running child is in the history", |seen| seen == [running()])?;
    let crash = |t: &mut Trial, child: &Life| -> Step<Life> {
        let at = t.note("SIGABRT to the child");
        kill(Pid::from_raw(child.pid), Signal::SIGABRT)?;
        t.next_child(at, secs(4))
    };
    let second = crash(t, &first)?;
    let third = crash(t, &second)?;
    let after_cooldown = crash(t, &third)?;
    let abort = |reason: &str| (reason.to_owned(), None, Some(6));
    until_told(t, "three crashes and a run", |seen| {
        seen == [abort("exited"), abort("exited"), abort("give_up"), running()]
    })?;
    // The guard is killed: nobody saw how the child ended.
    let guard = t.daemon("a")?.guard(KEEPER)?;
    let at = t.note("SIGKILL to the guard");
    kill(Pid::from_raw(guard.pid), Signal::SIGKILL)?;
    let next = t.next_child(at, secs(4))?;
    let what = format!("the guard of {} is lost", after_cooldown.instance);
    let lost = ("guard_lost".to_owned(), None, None);
    until_told(t, &what, |seen| seen.get(3..) == Some(&[lost.clone(), running()]))?;
    // Cut off from all nodes.
    t.random_moment();
    t.set_links("a", crate::proxy::Mode::BlackHole);
    let cut = boot_ns();
    t.pause(VALID + millis(300));
    t.died_with_its_lease(&next, cut)?;
    t.set_links("a", crate::proxy::Mode::Pass);
    let last = t.next_child(cut, secs(10))?;
    until_told(t, "the lease was lost, and it runs again", |seen| {
        let reasons: Vec<&str> = seen.iter().skip(4).map(|(reason, _, _)| reason.as_str()).collect();
        reasons == ["lease_lost", "runs"]
    })?;
    let status = t.daemon("a")?.keeper_status(KEEPER)?;
    check(status["last_exit"]["reason"] == "lease_lost", format!("{status}"))?;
    let tokens: Vec<&Value> =
        status["history"].as_array().into_iter().flatten().map(|run| &run["token"]).collect();
    check(tokens.last().is_some_and(|token| **token == last.token), format!("{tokens:?}"))?;
    t.figure(format!("{} runs told", tokens.len()));
    Ok(())
}

// ── followers ──

/// Of what a listener said, at once.
const PIECES: usize = 256;

/// A `keeperd logs -f`, with what it says so far.
struct Listener {
    process: Child,
    heard: std::sync::mpsc::Receiver<Vec<u8>>,
    said: Vec<u8>,
}

impl Listener {
    fn start(t: &mut Trial) -> Step<Listener> {
        let mut command = t.daemon("a")?.command(&["logs", KEEPER, "-f"]);
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut out = process.stdout.take().ok_or_else(|| failure("no pipe"))?;
        // Bounded: one that is not asked reads no further.
        let (tell, heard) = std::sync::mpsc::sync_channel(PIECES);
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(n @ 1..) = out.read(&mut chunk) {
                if tell.send(chunk[..n].to_vec()).is_err() {
                    return;
                }
            }
        });
        Ok(Listener { process, heard, said: Vec::new() })
    }

    fn text(&mut self) -> String {
        self.said.extend(self.heard.try_iter().take(PIECES).flatten());
        String::from_utf8_lossy(&self.said).into_owned()
    }

    fn signal(&self, signal: Signal) -> Step {
        Ok(kill(Pid::from_raw(i32::try_from(self.process.id())?), signal)?)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

fn follow(t: &mut Trial) -> Step {
    let child = vec!["--crash", "400", "7", "--run", "echo hello from $$"];
    t.begin(alone(child, QUICK_RESTARTS))?;
    let mut listener = Listener::start(t)?;
    let mut heard = String::new();
    t.until("a follower hears of five runs", |_| {
        heard = listener.text();
        Ok(heard.matches("hello from").count() >= 5 && heard.ends_with('\n'))
    })?;
    let hellos: std::collections::BTreeSet<&str> =
        heard.lines().filter(|l| l.contains("hello from")).collect();
    check(hellos.len() == heard.lines().count(), format!("lines twice or torn: {heard}"))?;
    t.figure(format!("{} runs followed", hellos.len()));
    t.signal("a", Signal::SIGTERM)?;
    t.daemon("a")?.await_exit(secs(10))?;
    t.until("logs -f ends with the daemon", |_| Ok(listener.process.try_wait()?.is_some()))?;
    let status = listener.process.wait()?;
    let mut why = String::new();
    listener.process.stderr.take().ok_or_else(|| failure("no pipe"))?.read_to_string(&mut why)?;
    check(status.code() == Some(3) && why.contains("keeperd has ended"), format!("{status}: {why}"))
}

fn slow_follower(t: &mut Trial) -> Step {
    let child = t.begin(alone(vec!["--shout"], "output = \"journal\""))?;
    let mut listener = Listener::start(t)?;
    until(t, &child, secs(10), "a line", |_| Ok(!listener.text().is_empty()))?;
    listener.signal(Signal::SIGSTOP)?;
    bounded(t, &child, secs(3))?;
    // Others are answered meanwhile.
    t.daemon("a")?.keeper_status(KEEPER)?;
    listener.signal(Signal::SIGCONT)?;
    until(t, &child, secs(15), "the follower is told what it lost", |_| {
        Ok(listener.text().contains("lines are missing here"))
    })
}

fn many_followers(t: &mut Trial) -> Step {
    const PLACES: usize = 16;
    let child = t.begin(alone(vec!["--run", "echo hello"], ""))?;
    let hears = |listener: &mut Listener| Ok(listener.text().contains("hello"));
    let mut listeners = Vec::new();
    for _ in 0..PLACES {
        let mut listener = Listener::start(t)?;
        until(t, &child, secs(10), "a follower hears its line", |_| hears(&mut listener))?;
        listeners.push(listener);
    }
    let refused = t.daemon("a")?.command(&["logs", KEEPER, "-f"]).output()?;
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    check(
        refused.status.code() == Some(1) && why.contains("follow already"),
        format!("one too many: {why}"),
    )?;
    t.daemon("a")?.keeper_status(KEEPER)?;
    listeners.pop();
    // Gone without a word, and nothing is written to it: its place is free all the same.
    until(t, &child, secs(15), "the place of one that went away", |t| {
        let mut late = Listener::start(t)?;
        let mut heard = false;
        t.until("the late follower hears, or is refused", |_| {
            let refused = late.process.try_wait()?.is_some();
            heard = hears(&mut late)?;
            Ok(heard || refused)
        })?;
        Ok(heard)
    })
}

// ── the pipe ──

fn held_pipe(t: &mut Trial) -> Step {
    let script = "setsid sh -c 'trap \"\" TERM; while :; do echo still here; sleep 0.005; done' &";
    let child = vec!["--crash", "700", "7", "--run", script];
    let first = t.begin(alone(child, QUICK_RESTARTS))?;
    let second = t.next_child(first.start + 1, secs(6))?;
    t.witness.look()?;
    let first = t.life(&first.instance)?;
    let gap = second.start.saturating_sub(first.end);
    t.figure(format!("restarted after {}", ms(gap)));
    check(second.token == first.token, "a restart within the term changed the term")?;
    check(gap < nanos(VALID), "the restart waited for the end of the pipe")?;
    let at = t.signal("a", Signal::SIGTERM)?;
    t.daemon("a")?.await_exit(secs(10))?;
    let took = boot_ns() - at;
    t.figure(format!("daemon ended after {}", ms(took)));
    check(took < nanos(millis(1500)), "the end waited for the end of the pipe")
}
