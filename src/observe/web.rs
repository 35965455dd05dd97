//! What is answered on `[http] listen`: to Prometheus, to load balancers and to people. Whoever reaches the port may read it, so nothing
//! here changes anything.

use super::api::{self, Answer};
use super::board::Board;
use super::metrics::{self, Metrics, leads};
use super::status::{self, role_name};
use crate::clock;
use crate::core::event::Role;
use crate::lock::NodeState;
use hyper::body::Incoming;
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, HeaderName, HeaderValue, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

const PAGE: &str = include_str!("page.html");
const PATHS: &str = "there are /, /metrics, /healthz, /readyz, /v1/status and /v1/leader/NAME";
/// The core thread shows the nodes four times a second.
const CORE_SLACK: Duration = Duration::from_secs(5);

/// What requests may look at.
#[derive(Clone, Debug)]
pub struct Web {
    board: Arc<Board>,
    host: Arc<str>,
    metrics: Arc<Metrics>,
}

impl Web {
    pub fn new(board: Arc<Board>, host: Arc<str>) -> Web {
        let metrics = Arc::new(Metrics::new(Arc::clone(&board)));
        Web { board, host, metrics }
    }

    pub fn respond(&self, request: &Request<Incoming>) -> Response<Answer> {
        let mut response = match *request.method() {
            Method::GET | Method::HEAD => self.show(request.uri().path()),
            _ => {
                let mut refusal =
                    api::error(StatusCode::METHOD_NOT_ALLOWED, "this port is for reading: use GET");
                refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
                refusal
            }
        };
        for (name, value) in [
            (CACHE_CONTROL, "no-store"),
            (X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (REFERRER_POLICY, "no-referrer"),
            (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        ] {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        response
    }

    fn show(&self, path: &str) -> Response<Answer> {
        let path: Vec<&str> = path.split('/').skip(1).collect();
        match path.as_slice() {
            [""] => page(),
            ["metrics"] => api::content(StatusCode::OK, metrics::CONTENT_TYPE, self.metrics.document()),
            ["healthz"] => verdict("healthy", self.health()),
            ["readyz"] => verdict("ready", self.readiness()),
            ["v1", "status"] => api::json(StatusCode::OK, &status::document(&self.board, &self.host)),
            ["v1", "leader", name] => self.leader(name),
            _ => api::error(StatusCode::NOT_FOUND, PATHS),
        }
    }

    /// Whether this process works, and whether it would help to restart it.
    fn health(&self) -> Result<(), String> {
        let now = clock::boot();
        let late = self.board.late(now);
        if !late.is_empty() {
            return Err(format!("the loop of these keepers is late: {}", late.join(", ")));
        }
        match self.board.nodes_age(now) {
            Some(age) if age > CORE_SLACK => Err(format!("the core thread has not turned for {age:.1?}")),
            // It has just been started.
            Some(_) | None => Ok(()),
        }
    }

    /// Whether this host could win and keep a lock now.
    fn readiness(&self) -> Result<(), String> {
        self.health()?;
        if self.board.nodes_age(clock::boot()).is_none() {
            return Err("the core thread is starting".to_owned());
        }
        let nodes = self.board.nodes();
        let serving = nodes.iter().filter(|node| node.state == NodeState::Serving).count();
        let (all, quorum) = (nodes.len(), nodes.len() / 2 + 1);
        if serving < quorum {
            return Err(format!("{serving} of {all} nodes serve and vote, {quorum} are needed"));
        }
        Ok(())
    }

    /// For load balancers: yes only while a child may run here under a lease that is not over.
    fn leader(&self, name: &str) -> Response<Answer> {
        let Some(view) = self.board.panel(name).map(|panel| panel.view()) else {
            return api::error(StatusCode::NOT_FOUND, "there is no such keeper");
        };
        let leader = view.role == Role::Leader && leads(&view, clock::boot());
        let code = if leader { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let holder = view.holder.and_then(|holder| holder.host);
        api::json(code, &json!({ "leader": leader, "role": role_name(view.role), "holder": holder }))
    }
}

fn verdict(what: &str, verdict: Result<(), String>) -> Response<Answer> {
    let code = if verdict.is_ok() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    api::json(code, &json!({ what: verdict.is_ok(), "reason": verdict.err() }))
}

/// Its script and style run by a nonce of this answer, and nothing else does.
fn page() -> Response<Answer> {
    let mut random = [0; 16];
    if getrandom::fill(&mut random).is_err() {
        return api::error(StatusCode::INTERNAL_SERVER_ERROR, "the kernel gives no random bytes");
    }
    let nonce = format!("{:032x}", u128::from_ne_bytes(random));
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let mut response =
        api::content(StatusCode::OK, "text/html; charset=utf-8", PAGE.replace("{nonce}", &nonce));
    let policy = HeaderValue::from_str(&policy).expect("a nonce is hexadecimal");
    response.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::OutputConfig;
    use crate::core::time::{Instant, WallTime};
    use crate::core::timing::Timing;
    use crate::keeper::first_view;
    use crate::lock::NodeStatus;
    use crate::observe::board::Panel;
    use crate::observe::log::{Format, LogQueue};
    use crate::observe::series::Series;
    use crate::output::{Journal, Outlet, Sinks, render_text};
    use nix::sys::signal::Signal;
    use std::path::Path;

    fn web(states: &[NodeState]) -> (Arc<Board>, Web) {
        let start = WallTime::from_micros(0);
        let timing = Timing::new(Duration::from_secs(2), Duration::ZERO).expect("fits");
        let view = first_view("k", timing, start, "started");
        let sinks = Sinks {
            log: LogQueue::start(Format::Text, Path::new("/nowhere")).expect("a thread"),
            render: render_text,
            journal: Arc::new(Journal::at(Path::new("/nowhere"))),
        };
        let outlet = Outlet::new("k", &OutputConfig::Null, &sinks).expect("no file, no thread");
        let node = |state: &NodeState| NodeStatus { state: *state, ..NodeStatus::unheard("n".into()) };
        let nodes: Vec<NodeStatus> = states.iter().map(node).collect();
        let board = Board::new(nodes.clone(), start);
        board.arrange(vec![Panel::new(view, outlet, Series::new(Signal::SIGTERM))]);
        board.try_put_nodes(nodes, clock::boot());
        (Arc::clone(&board), Web::new(board, "h".into()))
    }

    #[test]
    fn a_held_keeper_whose_loop_is_late_makes_the_daemon_unhealthy() {
        let (board, web) = web(&[NodeState::Serving]);
        assert_eq!((web.health(), web.readiness()), (Ok(()), Ok(())));
        board.panels()[0].promise_turn(Some(clock::boot() + Duration::from_secs(60)));
        assert_eq!(web.health(), Ok(()));
        board.panels()[0].promise_turn(Some(Instant::default()));
        let late = Err("the loop of these keepers is late: k".to_owned());
        assert_eq!((web.health(), web.readiness()), (late.clone(), late));
        // It holds nothing any more.
        board.panels()[0].promise_turn(None);
        assert_eq!(web.health(), Ok(()));
    }

    #[test]
    fn a_core_thread_that_stands_still_makes_it_unhealthy() {
        let (board, web) = web(&[NodeState::Serving]);
        board.try_put_nodes(board.nodes(), Instant::from_nanos(1));
        assert!(web.health().is_err_and(|why| why.contains("core thread")));
    }

    #[test]
    fn a_node_in_quarantine_does_not_vote_and_does_not_make_ready() {
        use NodeState::{Down, Quarantined, Serving};
        assert_eq!(web(&[Serving, Serving, Down]).1.readiness(), Ok(()));
        let starting = web(&[Serving, Quarantined, Quarantined]).1.readiness();
        assert_eq!(starting, Err("1 of 3 nodes serve and vote, 2 are needed".into()));
    }
}
