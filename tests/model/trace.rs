//! A path of the search, one sentence a step.

use super::world::{Content, Mail, State, Step, World, name};
use keeperd::core::lease::NodeId;
use keeperd::core::request::Request;
use stateright::Path;

/// What went on between hosts that only looked and waited is left out.
pub fn in_words(_: &World, path: Path<State, Step>) -> Vec<String> {
    let steps = path.into_vec();
    let mut lines = Vec::new();
    for pair in steps.windows(2) {
        let [(before, Some(step)), (after, _)] = pair else { continue };
        lines.push(format!(
            "{:>2}  {}{}",
            before.ticks,
            sentence(before, *step),
            consequences(before, after)
        ));
    }
    lines
}

fn sentence(state: &State, step: Step) -> String {
    let node = |id: u8| name(NodeId(id));
    match step {
        Step::Tick => "time passes".to_owned(),
        Step::Trip(at) => format!("{} arrives and is answered", message(&state.mail[at])),
        Step::ReplyDelayed(at) => format!("{} arrives, the answer is delayed", message(&state.mail[at])),
        Step::Delay(at) => format!("{} is delayed", message(&state.mail[at])),
        Step::Deliver(at) => format!("{} arrives", message(&state.mail[at])),
        Step::Wake(host) => format!("timer of host {host}"),
        Step::Hint(host) => format!("host {host} hears that a key was touched"),
        Step::ChildEnds(host) => format!("the child of host {host} ends as it was told"),
        Step::Freeze(host) => format!("the daemon of host {host} freezes"),
        Step::Thaw(host) => format!("the daemon of host {host} thaws"),
        Step::HandOver(host) => format!("host {host} is told to step down"),
        Step::Flush(id) => format!("FLUSHALL on node {}", node(id)),
        Step::Restart { node: id, empty: true } => format!("node {} restarts empty", node(id)),
        Step::Restart { node: id, empty: false } => format!("node {} restarts with its data", node(id)),
        Step::Delete(id) => format!("somebody deletes the lock key on node {}", node(id)),
    }
}

fn message(mail: &Mail) -> String {
    let (host, node) = (mail.host, name(mail.node));
    match &mail.content {
        Content::Request(request) => format!("{} of host {host} to node {node}", kind(request)),
        Content::Reply(answer) => format!("answer of node {node} to host {host}, {answer:?},"),
    }
}

fn kind(request: &Request) -> &'static str {
    match request {
        Request::Look => "look",
        Request::Acquire { .. } => "acquire",
        Request::Raise { .. } => "raise",
        Request::Extend { .. } => "extend",
        Request::Check { .. } => "check",
        Request::Repair { .. } => "repair",
        Request::Release { .. } => "release",
        Request::Bid { .. } => "bid",
    }
}

fn consequences(before: &State, after: &State) -> String {
    let mut text = String::new();
    for (id, (old, new)) in before.hosts.iter().zip(&after.hosts).enumerate() {
        if old.election.role() != new.election.role() {
            text += &format!("; host {id}: {:?}", new.election.role());
        }
        if old.is_alive() != new.is_alive() {
            let token = new.election.token().map_or(String::new(), |token| format!(", token {token}"));
            text += &format!("; child {id} {}{token}", if new.is_alive() { "STARTS" } else { "is dead" });
        }
    }
    if let Some(violation) = after.violation.filter(|_| before.violation.is_none()) {
        text += &format!("; VIOLATION {violation:?}");
    }
    text
}
