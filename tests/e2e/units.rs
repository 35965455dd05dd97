//! The witness is tested too: a checker that never complained is no evidence, nor is a proxy that never cut.
//!
//! Own target with the ordinary harness, because `e2e` has none.

#![allow(dead_code, reason = "the modules are e2e's; here only part of them is used")]

mod account;
mod checker;
mod clock;
mod history;
mod ledger;
mod proxy;
mod registers;
mod step;

use checker::{Fault, Freeze, Judge, Life, Record, Violation, parse_log, worst_overlap};
use clock::boot_ns;
use proxy::{Mode, Proxy};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

const MS: u64 = 1_000_000;

#[test]
fn a_process_of_an_earlier_run_that_goes_on_beside_the_next_is_seen() {
    let good =
        account::Account::parse("1 start\n1 tick\n2 work\n3 start\n3 tick\n").expect("one after the other");
    assert_eq!((good.runs.len(), good.said(0, "work"), good.said(1, "tick")), (2, 1, 1));
    for text in
        ["1 start\n3 start\n1 tick\n", "1 start\n2 work\n3 start\n2 work\n", "1 start\n3 start\n1 stop\n"]
    {
        assert!(account::Account::parse(text).is_err_and(|why| why.starts_with("two at once")), "{text:?}");
    }
    assert!(account::Account::parse("1 tick\n").is_err());
    assert!(account::Account::parse("start\n").is_err());
}

/// A child of `host` with ticks from `from` to `to` (in ms), as the probe would write it.
fn child(host: &str, pid: i32, token: u64, from: u64, to: u64, last: &str) -> String {
    let mut text = format!("{} k {token} {host}:{pid} {pid} start 0\n", from * MS);
    let mut n = 1;
    for at in (from + 5..to).step_by(5) {
        text += &format!("{} k {token} {host}:{pid} {pid} tick {n}\n", at * MS);
        n += 1;
    }
    text + &format!("{} k {token} {host}:{pid} {pid} {last} {n}\n", to * MS)
}

fn judge(records: &[Record]) -> Judge {
    let mut judge = Judge::default();
    records.iter().for_each(|r| judge.observe(r));
    judge
}

fn lives(records: &[Record]) -> Vec<Life> {
    judge(records).lives()
}

fn verdict(records: &[Record]) -> Vec<Violation> {
    judge(records).verdict()
}

fn faults(log: &str) -> Vec<Fault> {
    let (records, bad) = parse_log(log);
    bad.into_iter().chain(verdict(&records)).map(|v| v.fault).collect()
}

#[test]
fn a_clean_hand_over_passes() {
    let log = child("a", 1, 10, 0, 100, "stop") + &child("b", 2, 11, 101, 200, "tick");
    assert_eq!(faults(&log), []);
    assert_eq!(worst_overlap(&lives(&parse_log(&log).0)), 0);
}

#[test]
fn a_local_restart_keeps_its_token() {
    let log = child("a", 1, 10, 0, 100, "tick") + &child("a", 2, 10, 150, 200, "stop");
    assert_eq!(faults(&log), []);
}

#[test]
fn an_overlap_of_one_tick_is_flagged() {
    let log = child("a", 1, 10, 0, 100, "stop") + &child("b", 2, 11, 97, 200, "tick");
    assert_eq!(faults(&log), [Fault::Overlap]);
    assert_eq!(worst_overlap(&lives(&parse_log(&log).0)), 3 * MS);
}

#[test]
fn an_overlap_on_one_host_is_flagged() {
    let log = child("a", 1, 10, 0, 100, "tick") + &child("a", 2, 10, 50, 200, "stop");
    assert_eq!(faults(&log), [Fault::Overlap]);
}

#[test]
fn a_zombie_that_ticks_again_is_flagged_in_every_term_it_spans() {
    let zombie = child("a", 1, 10, 0, 100, "tick") + "900000000 k 10 a:1 1 tick 21\n";
    let log = zombie + &child("b", 2, 11, 200, 300, "stop") + &child("c", 3, 12, 400, 500, "stop");
    assert_eq!(faults(&log), [Fault::Overlap, Fault::Overlap]);
}

#[test]
fn a_grandchild_stretches_the_life_of_its_instance() {
    let log = child("a", 1, 10, 0, 100, "stop")
        + "50000000 k 10 a:1 9 gtick 0\n180000000 k 10 a:1 9 gtick 1\n"
        + &child("b", 2, 11, 150, 200, "stop");
    assert_eq!(faults(&log), [Fault::Overlap]);
}

#[test]
fn keepers_do_not_exclude_each_other() {
    let other = child("b", 2, 3, 0, 100, "stop").replace(" k ", " other ");
    assert_eq!(faults(&(child("a", 1, 10, 0, 100, "stop") + &other)), []);
}

#[test]
fn a_smaller_token_is_flagged() {
    let log = child("a", 1, 10, 0, 100, "stop") + &child("b", 2, 9, 200, 300, "stop");
    assert_eq!(faults(&log), [Fault::Token]);
}

#[test]
fn the_same_token_on_another_host_is_flagged() {
    let log = child("a", 1, 10, 0, 100, "stop") + &child("b", 2, 10, 200, 300, "stop");
    assert_eq!(faults(&log), [Fault::Token]);
}

/// As `tests/interop/keeper.js` writes it: no token, and a term's number behind the pid.
fn legacy(host: &str, from: u64, to: u64) -> String {
    child(host, 7, 4711, from, to, "stop").replace(" 4711 ", " none ").replace(":7 7 ", ":7/1 7 ")
}

#[test]
fn a_term_without_keeperd_has_no_place_in_the_order_of_tokens() {
    let log = legacy("x", 0, 50)
        + &child("a", 1, 10, 60, 100, "stop")
        + &legacy("y", 101, 200)
        + &child("b", 2, 11, 201, 300, "stop");
    assert_eq!(faults(&log), []);
}

#[test]
fn a_smaller_or_equal_token_after_a_term_without_keeperd_is_flagged() {
    let before = child("a", 1, 10, 0, 100, "stop") + &legacy("x", 101, 200);
    assert_eq!(faults(&(before.clone() + &child("b", 2, 9, 201, 300, "stop"))), [Fault::Token]);
    assert_eq!(faults(&(before + &child("a", 2, 10, 201, 300, "stop"))), [Fault::Token], "no local restart");
}

#[test]
fn a_legacy_keeper_excludes_and_is_excluded() {
    let first = child("a", 1, 10, 0, 100, "stop") + &legacy("x", 95, 200);
    assert_eq!(faults(&first), [Fault::Overlap]);
    assert_eq!(faults(&(legacy("x", 0, 100) + &child("a", 1, 10, 95, 200, "stop"))), [Fault::Overlap]);
    assert_eq!(faults(&(legacy("x", 0, 100) + &legacy("y", 95, 200))), [Fault::Overlap]);
}

#[test]
fn a_child_of_keeperd_cannot_pass_for_a_legacy_keeper() {
    for word in ["0", "-", ""] {
        let log = child("a", 1, 4711, 0, 5, "stop").replace(" 4711 ", &format!(" {word} "));
        assert_eq!(faults(&log), [Fault::Malformed, Fault::Malformed], "{log}");
    }
}

#[test]
fn a_token_above_2_to_the_53_is_flagged() {
    assert_eq!(faults(&child("a", 1, 1 << 53, 0, 100, "stop")), [Fault::Token]);
}

#[test]
fn a_token_that_changes_within_a_life_is_flagged() {
    let log = child("a", 1, 10, 0, 10, "tick").replace("10000000 k 10", "10000000 k 11");
    assert!(faults(&log).contains(&Fault::Token), "{log}");
}

#[test]
fn a_lost_record_is_flagged() {
    let log = child("a", 1, 10, 0, 100, "stop");
    let short: String = log.lines().filter(|l| !l.ends_with(" 7")).map(|l| format!("{l}\n")).collect();
    assert_eq!(faults(&short), [Fault::Gap]);
}

#[test]
fn a_torn_record_is_flagged() {
    assert_eq!(faults("123 k 10 a:1 1 sta"), [Fault::Malformed]);
    assert_eq!(faults("123 k 10 a:1 1 tick 0\n"), [Fault::Malformed], "no start");
}

#[test]
fn lives_are_what_the_records_say() {
    let (records, _) = parse_log(&(child("b", 2, 11, 101, 200, "tick") + &child("a", 1, 10, 0, 100, "stop")));
    let lives = lives(&records);
    let seen: Vec<_> = lives.iter().map(|l| (l.host.as_str(), l.start / MS, l.end / MS, l.stopped)).collect();
    assert_eq!(seen, [("a", 0, 100, true), ("b", 101, 200, false)]);
}

/// A server that returns what it gets, behind a proxy.
fn echo() -> Proxy {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(n @ 1..) = client.read(&mut buffer) {
                    client.write_all(&buffer[..n]).ok();
                }
            });
        }
    });
    Proxy::start(port).expect("a proxy")
}

fn client(proxy: &Proxy) -> TcpStream {
    TcpStream::connect(("127.0.0.1", proxy.port())).expect("connect")
}

/// Sends a byte and says what came back.
fn ask(c: &mut TcpStream) -> Result<u8, ErrorKind> {
    c.write_all(b"x").map_err(|e| e.kind())?;
    hear(c)
}

/// Longer than anything takes, however busy the machine.
const LONG: Duration = Duration::from_secs(30);

fn hear(c: &mut TcpStream) -> Result<u8, ErrorKind> {
    hear_within(c, LONG)
}

/// Sends a byte; whether nothing came back for a while.
fn is_silent(c: &mut TcpStream) -> bool {
    c.write_all(b"x").expect("it is open");
    hear_within(c, Duration::from_millis(150)) == Err(ErrorKind::WouldBlock)
}

fn hear_within(c: &mut TcpStream, limit: Duration) -> Result<u8, ErrorKind> {
    c.set_read_timeout(Some(limit)).expect("timeout");
    let mut byte = [0];
    match c.read_exact(&mut byte) {
        Ok(()) => Ok(byte[0]),
        Err(e) => Err(e.kind()),
    }
}

#[test]
fn a_passing_link_passes() {
    let proxy = echo();
    assert_eq!(ask(&mut client(&proxy)), Ok(b'x'));
}

#[test]
fn a_black_hole_is_silent_for_old_and_new_connections_and_gives_back_what_it_held() {
    let proxy = echo();
    let mut old = client(&proxy);
    assert_eq!(ask(&mut old), Ok(b'x'));
    proxy.set(Mode::BlackHole);
    let mut new = client(&proxy);
    assert!(is_silent(&mut old));
    assert!(is_silent(&mut new));
    proxy.set(Mode::Pass);
    assert_eq!(hear(&mut old), Ok(b'x'));
    assert_eq!(hear(&mut new), Ok(b'x'));
}

#[test]
fn lost_replies_are_lost_one_way() {
    let proxy = echo();
    let mut c = client(&proxy);
    assert_eq!(ask(&mut c), Ok(b'x'));
    proxy.set(Mode::RepliesHeld);
    assert!(is_silent(&mut c));
    proxy.set(Mode::Pass);
    assert_eq!(hear(&mut c), Ok(b'x'));
}

#[test]
fn a_refusing_link_resets_the_old_and_refuses_the_new() {
    let proxy = echo();
    let mut old = client(&proxy);
    assert_eq!(ask(&mut old), Ok(b'x'));
    proxy.set(Mode::Refuse);
    assert_eq!(hear(&mut old), Err(ErrorKind::ConnectionReset));
    let refused = TcpStream::connect(("127.0.0.1", proxy.port())).map_err(|e| e.kind());
    assert_eq!(refused.err(), Some(ErrorKind::ConnectionRefused));
    proxy.set(Mode::Pass);
    assert_eq!(ask(&mut client(&proxy)), Ok(b'x'));
}

#[test]
fn a_slow_link_is_slow() {
    let proxy = echo();
    let mut c = client(&proxy);
    ask(&mut c).expect("an answer");
    proxy.set(Mode::Delay(Duration::from_millis(30)));
    let before = boot_ns();
    assert_eq!(ask(&mut c), Ok(b'x'));
    assert!(boot_ns() - before >= 60 * MS, "thirty there, thirty back");
}

fn of_log(log: &str) -> Judge {
    judge(&parse_log(log).0)
}

#[test]
fn only_what_a_frozen_host_does_is_excused() {
    let zombie = child("a.1", 1, 10, 0, 100, "tick") + "900000000 k 10 a.1:1 1 tick 21\n";
    let log = zombie + &child("b.1", 2, 11, 200, 300, "stop");
    let excused = |host: &str, until: u64| {
        let mut judge = of_log(&log);
        judge.freezes.push(Freeze { host: host.into(), from: 90 * MS, until: until * MS });
        (judge.verdict().len(), judge.excused_overlaps().len(), history::verdict(&judge).0.len())
    };
    assert_eq!(excused("a", 950), (0, 1, 0));
    assert_eq!(excused("a", 890), (1, 0, 1), "it went on after the thaw");
    assert_eq!(excused("c", 950), (1, 0, 1), "another host");
}

#[test]
fn a_history_is_that_of_a_fenced_mutex_or_not() {
    let sound = child("a", 1, 10, 0, 100, "tick")
        + &child("a", 2, 10, 150, 200, "stop")
        + &child("b", 3, 11, 201, 300, "stop");
    let (found, operations) = history::verdict(&of_log(&sound));
    assert!(found.is_empty() && operations == 4, "{found:?}, {operations}");
    for (token, from) in [(9, 201), (10, 201), (11, 199)] {
        let log = child("a", 1, 10, 0, 200, "stop") + &child("b", 3, token, from, 300, "stop");
        // Token 10 again is, as far as this model goes, one term that goes on.
        assert_eq!(history::verdict(&of_log(&log)).0.len(), usize::from(token != 10), "{log}");
    }
}

/// Granted at 0 on all three nodes for 2 s, extended at 1 s on the first two.
fn ledger(value: &str, token: u64) -> ledger::Ledger {
    use ledger::{Deed, Ledger};
    let mut ledger = Ledger::new(3);
    for node in ['A', 'B', 'C'] {
        ledger.saw(0, node, "k", Deed::Granted { value: value.into(), px_ms: 2000 });
        ledger.saw(0, node, "k", Deed::Token { value: value.into(), token });
    }
    for node in ['A', 'B'] {
        ledger.saw(1000 * MS, node, "k", Deed::Extended { px_ms: 2000 });
    }
    ledger
}

#[test]
fn a_life_longer_than_what_a_quorum_granted_is_flagged() {
    let ends = |until: u64| {
        let (found, margins) = ledger("v", 10).verdict(&of_log(&child("a", 1, 10, 5, until, "tick")));
        assert_eq!(margins.checked, 1);
        found.into_iter().map(|v| v.fault).collect::<Vec<_>>()
    };
    assert_eq!(ends(2977), []);
    assert_eq!(ends(2979), [Fault::Validity], "the drift allowance is not the child's to use");
    let (_, margins) = ledger("v", 11).verdict(&of_log(&child("a", 1, 10, 5, 9000, "tick")));
    assert_eq!((margins.checked, margins.unknown), (0, 1), "another's grant says nothing");
}

#[test]
fn a_minority_that_was_extended_prolongs_nothing() {
    let mut ledger = ledger("v", 10);
    ledger.saw(2000 * MS, 'A', "k", ledger::Deed::Extended { px_ms: 2000 });
    let found = ledger.verdict(&of_log(&child("a", 1, 10, 5, 2979, "tick"))).0;
    assert_eq!(found.first().map(|v| v.fault.clone()), Some(Fault::Validity));
}

#[test]
fn what_a_node_did_as_it_died_is_unknown_and_no_more_than_that() {
    let judged = |died: u64, until: u64| {
        let mut ledger = ledger("v", 10);
        ledger.saw(2000 * MS, 'A', "k", ledger::Deed::Extended { px_ms: 2000 });
        ledger.died(died * MS, 'B');
        let (found, margins) = ledger.verdict(&of_log(&child("a", 1, 10, 5, until, "tick")));
        (found.len(), margins.unknown)
    };
    assert_eq!(judged(2001, 2977), (0, 0), "seen by a quorum");
    assert_eq!(judged(2001, 3977), (0, 1), "B may have extended it, too");
    assert_eq!(judged(2001, 3980), (1, 0), "whatever B did");
    assert_eq!(judged(2060, 2979), (1, 0), "the round was long over");
    assert_eq!(judged(1900, 2979), (1, 0), "it was dead already");
    let mut ledger = ledger("v", 10);
    ledger.saw(2000 * MS, 'A', "k", ledger::Deed::Extended { px_ms: 2000 });
    ledger.died(2001 * MS, 'B');
    ledger.saw(3000 * MS, 'C', "k", ledger::Deed::Released { value: "v".into() });
    let found = ledger.verdict(&of_log(&child("a", 1, 10, 5, 3977, "tick"))).0;
    assert_eq!(
        found.first().map(|v| v.fault.clone()),
        Some(Fault::Release),
        "its release is known all the same"
    );
}

#[test]
fn a_release_before_the_last_sign_of_life_is_flagged() {
    let released_at = |at: u64| {
        let mut ledger = ledger("v", 10);
        ledger.saw(at * MS, 'C', "k", ledger::Deed::Released { value: "v".into() });
        ledger.saw(at * MS + 9 * MS, 'A', "k", ledger::Deed::Released { value: "v".into() });
        ledger
            .verdict(&of_log(&child("a", 1, 10, 5, 500, "stop")))
            .0
            .into_iter()
            .map(|v| v.fault)
            .collect::<Vec<_>>()
    };
    assert_eq!(released_at(501), []);
    assert_eq!(released_at(499), [Fault::Release]);
}

#[test]
fn monitor_lines_are_read_as_what_the_scripts_did() {
    use ledger::{Deed, parse_deed};
    let deed = |line: &str| parse_deed(line);
    let k = |deed| Some(("k".to_owned(), deed));
    let line = |rest: &str| format!("+1795499429.603171 [0 lua] {rest}");
    assert_eq!(
        deed(&line(r#""SET" "redlock:k" "v" "PX" "2000""#)),
        k(Deed::Granted { value: "v".into(), px_ms: 2000 })
    );
    assert_eq!(deed(&line(r#""pexpire" "redlock:k" "1999""#)), k(Deed::Extended { px_ms: 1999 }));
    let fence = r#""HSET" "keeperd:fence:{redlock:k}" "#;
    assert_eq!(
        deed(&line(&format!(r#"{fence}"t" "7" "o" "v" "l" "v""#))),
        k(Deed::Token { value: "v".into(), token: 7 })
    );
    assert_eq!(deed(&line(&format!(r#"{fence}"x" "v""#))), k(Deed::Released { value: "v".into() }));
    assert_eq!(deed(&line(r#""SET" "keeperd:lease:{redlock:k}" "v" "PX" "2000""#)), None);
    assert_eq!(
        deed(r#"+1795499429.6 [0 127.0.0.1:36680] "SET" "redlock:k" "v" "PX" "2000""#),
        None,
        "a person's hand"
    );
}

/// What the registers object to, and how many writes the fenced one refused.
fn registered(mut registers: registers::Registers, log: &str, freezes: &[Freeze]) -> (Vec<Fault>, u64) {
    let records = parse_log(log).0;
    records.iter().for_each(|r| registers.write(r.at, r));
    assert_eq!(registers.writes, records.len() as u64);
    let mut judge = judge(&records);
    judge.freezes = freezes.to_vec();
    (registers.verdict(&judge).into_iter().map(|v| v.fault).collect(), registers.rejected)
}

fn sound() -> registers::Registers {
    registers::Registers::default()
}

fn without_a_fence() -> registers::Registers {
    registers::Registers::fenced_by(|_, _| true)
}

/// A tick of a child as `child` makes it.
fn tick(host: &str, pid: i32, token: u64, at: u64) -> String {
    format!("{} k {token} {host}:{pid} {pid} tick 9\n", at * MS)
}

#[test]
fn registers_count_what_is_stale_and_the_fenced_one_refuses_it() {
    let log = child("a", 1, 10, 0, 20, "tick") + &child("b", 2, 11, 25, 40, "tick") + &tick("a", 1, 10, 50);
    assert_eq!(registered(sound(), &log, &[]), (vec![Fault::Stale], 1));
    let frozen = [Freeze { host: "a".into(), from: 20 * MS, until: 60 * MS }];
    assert_eq!(registered(sound(), &log, &frozen), (vec![], 1));
}

#[test]
fn a_register_that_takes_an_older_token_is_flagged_whatever_was_frozen() {
    let log = child("a", 1, 10, 0, 20, "tick")
        + &child("b", 2, 11, 25, 40, "tick")
        + &tick("a", 1, 10, 50)
        + &tick("b", 2, 11, 55);
    assert_eq!(registered(without_a_fence(), &log, &[]), (vec![Fault::Stale, Fault::Fence], 0));
    let frozen = [Freeze { host: "a".into(), from: 20 * MS, until: 60 * MS }];
    assert_eq!(registered(without_a_fence(), &log, &frozen), (vec![Fault::Fence], 0));
}

#[test]
fn one_token_written_by_two_hosts_is_flagged_though_no_fence_can_refuse_it() {
    for other in ["b.1", "a.2"] {
        let log = child("a.1", 1, 10, 0, 20, "tick") + &child(other, 2, 10, 25, 40, "tick");
        assert_eq!(registered(sound(), &log, &[]), (vec![Fault::Fence], 0), "{other}");
    }
}

#[test]
fn a_child_that_writes_after_its_successor_of_the_same_term_is_flagged() {
    let restarted = child("a", 1, 10, 0, 20, "tick") + &child("a", 2, 10, 25, 40, "tick");
    assert_eq!(registered(sound(), &restarted, &[]), (vec![], 0), "restarts within a term are sound");
    let log = restarted + &tick("a", 1, 10, 50) + &tick("a", 2, 10, 55);
    assert_eq!(registered(sound(), &log, &[]), (vec![Fault::Fence], 0));
}

#[test]
fn a_write_reaches_the_registers_and_none_waits_for_them() {
    let dir = tempfile::tempdir().expect("a folder");
    let shared = registers::Registers::open(dir.path()).expect("a socket");
    let writer = registers::Writer::beside(&dir.path().join("probe.log"));
    let record = b"5000000 k 10 a:1 1 tick 0\n";
    let held = shared.lock().expect("the lock"); // the reader cannot go on
    let before = boot_ns();
    (0..5000).for_each(|_| writer.write(record));
    assert!(boot_ns() - before < 30_000 * MS, "a full queue is no reason to wait");
    drop(held);
    let deadline = boot_ns() + 30_000 * MS;
    while shared.lock().expect("the lock").writes == 0 {
        assert!(boot_ns() < deadline, "nothing arrived");
        std::thread::sleep(Duration::from_millis(1));
    }
}
