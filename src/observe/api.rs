//! What is answered on the control socket, and to whom.

use super::board::Board;
use super::status::{self, HeardLine};
use crate::core::event::Command;
use crate::core_thread::{Order, Told};
use crate::output::{Follower, Outlet};
use crate::reload::{self, Refused};
use http_body_util::{Either, Full};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

/// Those who follow a keeper's lines at a time. Fewer than connections, so that there is always one left for `status`.
const FOLLOWERS_MAX: usize = 16;

/// The core thread answers in microseconds, unless its host was frozen.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// What requests may look at and ask for.
#[derive(Clone, Debug)]
pub struct Api {
    board: Arc<Board>,
    host: Arc<str>,
    followers: Arc<Semaphore>,
    orders: mpsc::Sender<Order>,
    reloads: mpsc::Sender<reload::Request>,
}

/// A document, or lines without end.
#[derive(Debug)]
pub struct Answer(Either<Full<Bytes>, Lines>);

impl Answer {
    /// It lasts as long as the client likes.
    pub fn is_endless(&self) -> bool {
        matches!(self.0, Either::Right(_))
    }
}

impl Api {
    pub fn new(
        board: Arc<Board>,
        host: Arc<str>,
        orders: mpsc::Sender<Order>,
        reloads: mpsc::Sender<reload::Request>,
    ) -> Api {
        let followers = Arc::new(Semaphore::new(FOLLOWERS_MAX));
        Api { board, host, followers, orders, reloads }
    }

    pub async fn respond(&self, request: &Request<Incoming>) -> Response<Answer> {
        let path: Vec<&str> = request.uri().path().split('/').skip(1).collect();
        match (request.method(), path.as_slice()) {
            (&Method::GET, ["v1", "status"]) => {
                json(StatusCode::OK, &status::document(&self.board, &self.host))
            }
            (&Method::GET, ["v1", "keepers", name, "logs"]) => match self.board.panel(name) {
                Some(panel) => self.lines(&panel.outlet(), asks_for("follow", request.uri().query())),
                None => error(StatusCode::NOT_FOUND, "there is no such keeper"),
            },
            (_, ["v1", "status"] | ["v1", "keepers", _, "logs"]) => {
                error(StatusCode::METHOD_NOT_ALLOWED, "use GET")
            }
            (&Method::POST, ["v1", "keepers", name, verb]) => match (command(verb), self.board.panel(name)) {
                (Some(_), None) => error(StatusCode::NOT_FOUND, "there is no such keeper"),
                (Some(command), Some(panel)) => self.tell_one(&panel.name, command).await,
                (None, _) => error(StatusCode::NOT_FOUND, COMMANDS),
            },
            // A daemon that is drained goes on, and stands for nothing.
            (&Method::POST, ["v1", "drain"]) => self.tell_all(Command::Pause),
            (&Method::POST, ["v1", "resume"]) => self.tell_all(Command::Resume),
            (&Method::POST, ["v1", "reload"]) => {
                self.reload(asks_for("dry_run", request.uri().query())).await
            }
            (_, ["v1", "drain" | "resume" | "reload"]) => error(StatusCode::METHOD_NOT_ALLOWED, "use POST"),
            (_, ["v1", "keepers", _, verb]) if command(verb).is_some() => {
                error(StatusCode::METHOD_NOT_ALLOWED, "use POST")
            }
            _ => error(StatusCode::NOT_FOUND, PATHS),
        }
    }

    async fn tell_one(&self, keeper: &Arc<str>, command: Command) -> Response<Answer> {
        let (answer, answered) = oneshot::channel();
        let told = Told { command, answer: Some(answer) };
        if self.orders.try_send(Order::One { keeper: Arc::clone(keeper), told }).is_err() {
            return error(StatusCode::SERVICE_UNAVAILABLE, BUSY);
        }
        match tokio::time::timeout(ANSWER_TIMEOUT, answered).await {
            Ok(Ok(Ok(()))) => accepted(),
            Ok(Ok(Err(refusal))) => error(StatusCode::CONFLICT, refusal.why()),
            Ok(Err(_)) => error(StatusCode::SERVICE_UNAVAILABLE, BUSY),
            Err(_) => {
                error(StatusCode::GATEWAY_TIMEOUT, "the keeper has not answered in 2 s; see its status")
            }
        }
    }

    fn tell_all(&self, command: Command) -> Response<Answer> {
        match self.orders.try_send(Order::All(command)) {
            Ok(()) => accepted(),
            Err(_) => error(StatusCode::SERVICE_UNAVAILABLE, BUSY),
        }
    }

    async fn reload(&self, dry_run: bool) -> Response<Answer> {
        let (answer, answered) = oneshot::channel();
        if self.reloads.try_send(reload::Request { dry_run, answer }).is_err() {
            return error(StatusCode::SERVICE_UNAVAILABLE, BUSY);
        }
        match answered.await {
            Ok(Ok(report)) => json(StatusCode::OK, &report),
            Ok(Err(Refused::Ending)) | Err(_) => error(StatusCode::SERVICE_UNAVAILABLE, BUSY),
            Ok(Err(refused)) => {
                let why = serde_json::json!({ "error": refused.to_string(), "errors": refused.mistakes() });
                json(StatusCode::UNPROCESSABLE_ENTITY, &why)
            }
        }
    }

    /// The lines kept of a keeper, one JSON object each; `follow`: and all that come.
    fn lines(&self, outlet: &Outlet, follow: bool) -> Response<Answer> {
        let body = if follow {
            let Ok(place) = Arc::clone(&self.followers).try_acquire_owned() else {
                let why = format!("{FOLLOWERS_MAX} clients follow already");
                return error(StatusCode::SERVICE_UNAVAILABLE, &why);
            };
            Either::Right(Lines { follower: outlet.recent().follow(), _place: place })
        } else {
            let mut document = Vec::new();
            for line in outlet.recent().lines() {
                status::write_line(&mut document, &HeardLine::from(&**line));
            }
            Either::Left(Full::new(Bytes::from(document)))
        };
        answer(StatusCode::OK, "application/x-ndjson", body)
    }
}

const BUSY: &str = "keeperd has too much to do or is ending: try again";
const COMMANDS: &str = "there are step-down, pause, resume and restart";
const PATHS: &str = "there are GET /v1/status and /v1/keepers/NAME/logs[?follow], \
    POST /v1/keepers/NAME/{step-down|pause|resume|restart}, /v1/drain, /v1/resume and /v1/reload[?dry_run]";

/// As the path names it.
fn command(verb: &str) -> Option<Command> {
    match verb {
        "step-down" => Some(Command::StepDown),
        "pause" => Some(Command::Pause),
        "resume" => Some(Command::Resume),
        "restart" => Some(Command::Restart),
        _ => None,
    }
}

fn accepted() -> Response<Answer> {
    json(StatusCode::ACCEPTED, &serde_json::json!({ "accepted": true }))
}

/// The query has this word, alone or as true.
fn asks_for(word: &str, query: Option<&str>) -> bool {
    let is_word =
        |part: &str| part.strip_prefix(word).is_some_and(|rest| matches!(rest, "" | "=1" | "=true"));
    query.unwrap_or_default().split('&').any(is_word)
}

/// The body of a response that follows a keeper.
#[derive(Debug)]
struct Lines {
    follower: Arc<Follower>,
    _place: OwnedSemaphorePermit,
}

impl Body for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let mut document = Vec::new();
        for heard in ready!(self.follower.poll_heard(cx)) {
            status::write_line(&mut document, &HeardLine::from(&heard));
        }
        Poll::Ready(Some(Ok(Frame::data(Bytes::from(document)))))
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut self.0 {
            Either::Left(document) => Pin::new(document).poll_frame(cx),
            Either::Right(lines) => Pin::new(lines).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Either::Left(document) => document.is_end_stream(),
            Either::Right(_) => false,
        }
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        match &self.0 {
            Either::Left(document) => document.size_hint(),
            Either::Right(lines) => lines.size_hint(),
        }
    }
}

pub(super) fn json(code: StatusCode, document: &impl serde::Serialize) -> Response<Answer> {
    let mut body = serde_json::to_vec_pretty(document).expect("documents are plain data");
    body.push(b'\n');
    content(code, "application/json", body)
}

pub(super) fn error(code: StatusCode, message: &str) -> Response<Answer> {
    json(code, &serde_json::json!({ "error": message }))
}

pub(super) fn content(code: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Answer> {
    answer(code, kind, Either::Left(Full::new(body.into())))
}

fn answer(code: StatusCode, kind: &'static str, body: Either<Full<Bytes>, Lines>) -> Response<Answer> {
    let mut response = Response::new(Answer(body));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
