//! Events of the core as log lines: one line per change of role, and it says why.

use crate::core::event::{Command, ElectionOutcome, Event, Reason, Role, Said};
use crate::core::lease::NodeId;
use crate::core::request::Pause;
use crate::core::restart::{Ending, Exit};
use crate::core::round::ExtensionOutcome;
use crate::observe::status::{rfc3339, role_name};
use std::fmt::Write;

/// Writes an event of `keeper` to the log; `nodes` are the nodes' names, in order.
pub fn log(keeper: &str, nodes: &[String], event: &Event) {
    match event {
        Event::RoleChanged { .. } => log_role(keeper, nodes, event),
        Event::Elected { outcome, votes } => {
            let votes = say_votes(nodes, votes);
            tracing::debug!(keeper, outcome = outcome.name(), votes, "election");
        }
        Event::Extended { outcome, took, votes } => {
            let (votes, outcome) = (say_votes(nodes, votes), extension_name(*outcome));
            tracing::debug!(keeper, outcome, votes, took_us = took.as_micros() as u64, "extension");
        }
        Event::ChildStarted { pid, token } => {
            tracing::info!(keeper, pid, token = token.0, "child runs");
        }
        Event::ChildExited { exit, ran, .. } => {
            let ran_ms = ran.as_millis() as u64;
            tracing::info!(keeper, ran_ms, "child ended: {}", say_exit(*exit));
        }
        Event::RestartBegins { reason: Reason::Unhealthy(why) } => {
            tracing::warn!(keeper, "the child is unhealthy and is stopped: {why}");
        }
        Event::RestartBegins { reason } => {
            tracing::info!(keeper, "the child is restarted within the term: {}", say_reason(reason));
        }
        Event::HostFit => tracing::info!(keeper, "this host is fit to run it"),
        Event::HostUnfit { why } => {
            tracing::warn!(keeper, "this host is not fit to run it and does not stand: {why}");
        }
        Event::ChildRestarts { after, .. } => {
            tracing::info!(keeper, after_ms = after.as_millis() as u64, "child is restarted within the term");
        }
        Event::StopSent { polite: true } => tracing::debug!(keeper, "stop signal sent to the child"),
        Event::StopSent { polite: false } => tracing::debug!(keeper, "SIGKILL sent to the child's tree"),
        Event::TreeDead { killed: 0 } => tracing::debug!(keeper, "the child's tree is dead"),
        Event::TreeDead { killed } => {
            tracing::info!(keeper, killed, "the child's tree is dead; what had not ended in time was killed");
        }
        Event::TreeOutlivesLease => tracing::error!(
            keeper,
            "the lease is over and the child's tree is not proven dead: another host may start a second copy. \
             Look for processes in state D and end them; nothing is released before"
        ),
        Event::ClockAhead { node, ahead_us } => tracing::warn!(
            keeper,
            node = name(nodes, *node),
            ahead_ms = ahead_us / 1000,
            "this host's clock is more than an hour ahead of the node's: set one of them right"
        ),
        Event::HolderSeen { holder: Some(holder) } => {
            tracing::info!(
                keeper,
                host = holder.host,
                pid = holder.pid,
                "standing by: it runs on {}",
                holder.host
            );
        }
        Event::HolderSeen { holder: None } => {
            tracing::info!(keeper, "standing by: a client that is not keeperd holds the lock");
        }
        Event::Bids { holder } => tracing::info!(
            keeper,
            host = holder.host,
            "this host is preferred and was well for long enough: {} is asked to hand over",
            holder.host
        ),
        Event::Released { confirmed, token } => {
            tracing::debug!(keeper, confirmed, token = token.0, "lock released");
        }
    }
}

fn log_role(keeper: &str, nodes: &[String], event: &Event) {
    let Event::RoleChanged { from, to, reason, token, votes, lease_age, lease_left } = event else { return };
    let token = token.map(|token| token.0);
    let votes = say_votes(nodes, votes);
    let lease_age_ms = lease_age.map(|age| age.as_millis() as u64);
    let lease_left_ms = lease_left.map(|left| left.as_millis() as u64);
    let (from, to_name, why) = (role_name(*from), role_name(*to), say_reason(reason));
    macro_rules! line {
        ($level:ident) => {
            tracing::$level!(
                keeper,
                from,
                to = to_name,
                token,
                votes,
                lease_age_ms,
                lease_left_ms,
                "{to_name}: {why}"
            )
        };
    }
    match (to, reason) {
        // Every look that finds the lock free, and every lost race, is routine.
        (Role::Candidate, _) | (Role::Standby, Reason::NotElected(_)) => line!(debug),
        (_, Reason::Foreign | Reason::LeaseEnding | Reason::GuardStopped | Reason::GuardLost(_))
        | (
            _,
            Reason::LaunchFailed(_)
            | Reason::NeverStarted
            | Reason::ExecFailed { .. }
            | Reason::GaveUp { .. }
            | Reason::Evicted,
        ) => {
            line!(warn);
        }
        (
            Role::Standby
            | Role::Leader
            | Role::SteppingDown
            | Role::Paused
            | Role::Cooldown
            | Role::Finished,
            _,
        ) => line!(info),
    }
}

/// What `status` shows as the last change: of the role, or of what matters about it.
pub fn news(event: &Event) -> Option<String> {
    match event {
        Event::RoleChanged { reason, .. } | Event::RestartBegins { reason } => Some(say_reason(reason)),
        Event::ChildExited { exit, ending: Ending::ByItself, .. } => {
            Some(format!("the child ended: {}", say_exit(*exit)))
        }
        Event::HostUnfit { why } => Some(say_reason(&Reason::Unfit(why.clone()))),
        Event::HostFit => Some("this host is fit to run it".into()),
        Event::Elected { .. }
        | Event::Extended { .. }
        | Event::Bids { .. }
        | Event::ChildStarted { .. }
        | Event::ChildExited { .. }
        | Event::ChildRestarts { .. }
        | Event::StopSent { .. }
        | Event::TreeDead { .. }
        | Event::TreeOutlivesLease
        | Event::ClockAhead { .. }
        | Event::HolderSeen { .. }
        | Event::Released { .. } => None,
    }
}

/// The reason as people read it in the log and in `status`.
pub fn say_reason(reason: &Reason) -> String {
    match reason {
        Reason::LooksFree => "a quorum of nodes looks free".into(),
        Reason::Won => "won the election".into(),
        Reason::NotElected(ElectionOutcome::Conflict) => {
            "another host was elected, or the vote was split".into()
        }
        Reason::NotElected(ElectionOutcome::NoQuorum) => "too few nodes answered and vote".into(),
        Reason::NotElected(ElectionOutcome::Late) => "the election took too long".into(),
        Reason::NotElected(ElectionOutcome::Won) => "elected".into(),
        Reason::Command(Command::StepDown) => "asked to step down".into(),
        Reason::Command(Command::Pause) => "asked to pause".into(),
        Reason::Command(Command::Resume) => "asked to resume".into(),
        Reason::Command(Command::Restart) => "asked to restart".into(),
        Reason::Command(Command::Drain) => "keeperd is stopping".into(),
        Reason::Command(Command::Retire) => "the configuration was reloaded".into(),
        Reason::Command(Command::Kill) => "keeperd is stopping at once".into(),
        Reason::Evicted => "the lock was deleted under us and nobody else can have it yet".into(),
        Reason::Foreign => "another holder has the lock, or may have it".into(),
        Reason::LeaseEnding => "the lease could not be renewed and ends".into(),
        Reason::GuardStopped => "the guard had reached its own deadline".into(),
        Reason::GuardLost(why) => format!("the guard is lost: it {why}"),
        Reason::LaunchFailed(error) => format!("no guard could be started: {error}"),
        Reason::ExecFailed { stage, errno } => {
            let error = std::io::Error::from_raw_os_error(*errno);
            format!("the command could not be started: {stage}: {error}")
        }
        Reason::NeverStarted => {
            "the command was neither started nor refused; does its file system answer?".into()
        }
        Reason::TooLate => "it was too late in the lease to start the child".into(),
        Reason::GaveUp { failures } => format!("the child failed {failures} times: another host may try"),
        Reason::PolicyFinished { exit } => {
            format!("the child ended ({}) and its restart policy wants no more of it", say_exit(*exit))
        }
        Reason::Outbid(bid) => {
            format!("{}, preferred with priority {}, asks for it", bid.host, bid.priority.0)
        }
        Reason::PausedEverywhere(Pause { host, since }) => {
            format!("paused everywhere by {host} at {}", rfc3339(*since))
        }
        Reason::ResumedEverywhere => "the pause everywhere is over".into(),
        Reason::Released => "the lock is released".into(),
        Reason::CooldownOver => "the cooldown is over".into(),
        Reason::Resumed => "resumed".into(),
        Reason::Unhealthy(why) => format!("the child is unhealthy: {why}"),
        Reason::Unfit(why) => format!("this host is not fit to run it: {why}"),
    }
}

pub fn say_exit(exit: Exit) -> String {
    match exit {
        Exit::Code(code) => format!("exit code {code}"),
        Exit::Signal(signal) => match nix::sys::signal::Signal::try_from(signal) {
            Ok(signal) => format!("signal {signal}"),
            Err(_) => format!("signal {signal}"),
        },
    }
}

fn say_votes(nodes: &[String], votes: &[(NodeId, Said)]) -> String {
    let mut text = String::new();
    for (node, said) in votes {
        let space = if text.is_empty() { "" } else { " " };
        // Writing to a String cannot fail.
        let _ = write!(text, "{space}{}={}", name(nodes, *node), said_name(*said));
    }
    text
}

fn name(nodes: &[String], node: NodeId) -> &str {
    nodes.get(usize::from(node.0)).map_or("?", String::as_str)
}

fn said_name(said: Said) -> &'static str {
    match said {
        Said::Free => "free",
        Said::Granted => "granted",
        Said::Ok => "ok",
        Said::Kept => "kept",
        Said::Empty => "empty",
        Said::Gone => "gone",
        Said::Foreign => "foreign",
        Said::Held => "held",
        Said::Quarantined => "quarantined",
        Said::Paused => "paused",
        Said::Late => "late",
        Said::Refused => "refused",
        Said::Pending => "pending",
        Said::Silent => "silent",
    }
}

pub fn extension_name(outcome: ExtensionOutcome) -> &'static str {
    match outcome {
        ExtensionOutcome::Renewed => "renewed",
        ExtensionOutcome::Unknown => "unknown",
        ExtensionOutcome::Evicted => "evicted",
        ExtensionOutcome::Foreign => "foreign",
    }
}
