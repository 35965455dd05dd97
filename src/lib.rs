//! keeperd: a leader-elected process supervisor. Each keeper, a long-running script, runs on exactly one host or on none.
//!
//! What it promises, and what not, is in README.md. This is for those who read or change the code.
//!
//! # Bird's eye
//! ```text
//!            core thread: holds the leases, waits for nobody
//!  ┌────────────────────────────────────────────────────────────────┐
//!  │  lock::redis           keeper (shell)        core::election    │   guard process, one per term
//!  │  a node, a node  ────► an input ───────────► handle_*          │  ┌──────────────────────────────┐
//!  │  or lock::local  ◄──── an action ◄────────── poll_action       │  │ guard::process               │
//!  │                        sleeps until ◄─────── poll_timeout      │  │  two deadlines on a boot-time│
//!  │                              │  ▲                              │  │  timer; kills, proves death; │
//!  │                    guard::daemon: frames  ◄────────────────────┼─►│  releases if the daemon died │
//!  └──────────────┬──────────────────────────────────────┬──────────┘  │      │ fork, exec            │
//!       board     │ try_lock, never waits        pipes   │             │      ▼                       │
//!  ┌──────────────▼──────────────────────────────────────▼──────────┐  │  child and its tree          │
//!  │  daemon (edge thread): signals, output, observe::http, systemd │  └──────────────────────────────┘
//!  └───────────────────────────────┬────────────────────────────────┘
//!                                  └─► observe::log: a bounded queue and a thread ─► stderr
//! ```
//! A keeper's life in one sentence: it looks until a quorum of nodes seems free, stands, wins a lease and a token, launches a guard
//! that arms its deadlines and forks the child, extends every ttl/2 and tells the guard the new deadlines; when that ends, for
//! whatever reason, it stops or kills, waits for the proof that the tree is dead, releases, and looks again.
//!
//! # Map
//! * `core`: every decision, pure. Time, answers and randomness come in as values. Start with the table in `core::election`, then
//!   `core::timing` (the time line), `core::round` (how an extension is judged), `core::lease`. `core::preference` and `core::spread`
//!   decide which host goes first, which no safety rule depends on.
//! * `lock`: what carries a request to the nodes. `lock::redis` has one actor per node and the Lua scripts beside it;
//!   `lock::local` is flock on one host. Both answer in the words of `core::request`.
//! * `guard`: the process that ends a child in time. `guard::process` is its loop, `spawn` the way from fork to exec, `tree` and
//!   `cgroup` find and kill everything, `sys` has the only unsafe code, `daemon` is the other end of its socket.
//! * `keeper`: the shell of one election; `keeper::reserve`, a guard that is started before there is a term for it. `core_thread` and
//!   `daemon`: the two threads. `child`, `env_file`, `output`: what a child is given, and what it writes. `clock`: the only place that
//!   reads clocks.
//! * `errand`, `hooks`: short commands of the daemon's own, under guards of their own; those that go with a term. `health`: probes.
//! * `roster`: the keepers on the core thread, and who takes whose place. `reload`, on the edge thread: a new configuration, and what differs;
//!   `outfit`: what a keeper needs on both.
//! * `config`: from TOML to values that cannot be wrong; all mistakes at once, each with its place.
//! * `observe`: log lines, status, metrics, control socket and `[http]`, made of the core's events and of nothing else. `systemd`: sd_notify.
//! * `cli`, `ops`: the command line and the commands that are not the daemon.
//!
//! # Invariants
//! Nine rules keep two copies from running. Each names where it is enforced; a change there needs a test that fails without it.
//!
//! 1. **A lease counts from before its request was sent**, node by node, and ends with the Q-th largest of these ends.
//!    `Lease::add_vote`, `Lease::valid_until`; `Context::ticket` stamps; `Attempt::take_grant` keeps the first request's time (R8).
//! 2. **Stop and kill come before that end**, by margins that fit. `Timing::new` refuses others; `Term::begin` asserts the order.
//! 3. **Silence is neither yes nor no**, a round's end never moves, and a late yes counts from its own request. `Round`,
//!    `round::judge`, `Term::handle_extend`. A dropped vote (*gone*, *foreign*) shortens the guard's deadlines at once: `Term::offer`.
//! 4. **Released only after the tree is proven dead**; without proof it is extended, then left to expire with an alarm.
//!    `election/child.rs` (`tree_dead`), `Term::lease_ends`; the guard's proof is ECHILD and an empty cgroup, `process::kill_more`; the
//!    daemon's in the guard's place is `LastResort::pass`. With the local engine the daemon keeps the descriptor as long.
//! 5. **Every term has a new value and a larger token, agreed by a quorum**, and a released value never lives again on a node.
//!    `Attempt::has_lock` and `raise`; field `x` of the fence in `release.lua`, read by every script that writes.
//! 6. **Taking and extending fail differently**: a failed attempt is released wherever it may have arrived (`Attempt::withdraw`), a
//!    failed extension deletes nothing. Extending never creates (`extend.lua`); repair never overwrites (`repair.lua`).
//! 7. **A node that may have lost its data does not elect** until every lease it may have forgotten is over. `abstains` in
//!    `prelude.lua`, inside acquire and raise and not on connection (R1); `adopt.lua` starts the wait once per run of the server.
//! 8. **Silence is death.** The guard acts at its deadlines, and at the end of its socket, without being told: `process::on_time`,
//!    `on_frame`. The child dies with its guard (`spawn`: PDEATHSIG). A guard that dies or does not acknowledge is replaced by the
//!    daemon: `Term::lose_guard`. A panic ends the daemon (`panic = "abort"`).
//! 9. **Stopping is not undone**: no deadline moves out and nothing is forked after it (`latched` in `guard::process`), the clock is
//!    read before every frame, and once more before exec (`spawn::exec`).
//!
//! # Deliberately absent
//! A clock, a socket, a task or a random source in `core` (the linter's lists in `.clippy.toml`). `waitpid(-1)` in the daemon. A fork
//! in a process with threads. Waiting for the edge thread on the core thread. An unbounded queue. A retry of a safety test.

pub mod child;
pub mod cli;
pub mod clock;
pub mod config;
pub mod core;
pub mod core_thread;
pub mod daemon;
pub mod env_file;
pub mod errand;
pub mod guard;
pub mod health;
pub mod hooks;
pub mod keeper;
pub mod lock;
pub mod observe;
pub mod ops;
pub mod outfit;
pub mod output;
pub mod reload;
pub mod roster;
pub mod systemd;
