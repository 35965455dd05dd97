//! What is answered on the control socket, and to whom.

use super::board::Board;
use super::status::{self, HeardLine};
use crate::output::{Follower, Outlet};
use http_body_util::{Either, Full};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Those who follow a keeper's lines at a time. Fewer than connections, so that there is always one left for `status`.
const FOLLOWERS_MAX: usize = 16;

/// What requests may look at and ask for.
#[derive(Clone, Debug)]
pub struct Api {
    board: Arc<Board>,
    host: Arc<str>,
    outlets: Arc<BTreeMap<Arc<str>, Arc<Outlet>>>,
    followers: Arc<Semaphore>,
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
    pub fn new(board: Arc<Board>, host: Arc<str>, outlets: &[Arc<Outlet>]) -> Api {
        let outlets = outlets.iter().map(|outlet| (Arc::clone(&outlet.name), Arc::clone(outlet))).collect();
        Api { board, host, outlets: Arc::new(outlets), followers: Arc::new(Semaphore::new(FOLLOWERS_MAX)) }
    }

    pub fn respond(&self, request: &Request<Incoming>) -> Response<Answer> {
        let path: Vec<&str> = request.uri().path().split('/').skip(1).collect();
        match (request.method(), path.as_slice()) {
            (&Method::GET, ["v1", "status"]) => {
                json(StatusCode::OK, &status::document(&self.board, &self.host, &self.outlets))
            }
            (&Method::GET, ["v1", "keepers", name, "logs"]) => match self.outlets.get(*name) {
                Some(outlet) => self.lines(outlet, follows(request.uri().query())),
                None => error(StatusCode::NOT_FOUND, "there is no such keeper"),
            },
            (_, ["v1", "status"] | ["v1", "keepers", _, "logs"]) => {
                error(StatusCode::METHOD_NOT_ALLOWED, "use GET")
            }
            _ => error(StatusCode::NOT_FOUND, "there are GET /v1/status and /v1/keepers/NAME/logs[?follow]"),
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

fn follows(query: Option<&str>) -> bool {
    query.unwrap_or_default().split('&').any(|word| matches!(word, "follow" | "follow=1" | "follow=true"))
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

fn json(code: StatusCode, document: &impl serde::Serialize) -> Response<Answer> {
    let mut body = serde_json::to_vec_pretty(document).expect("documents are plain data");
    body.push(b'\n');
    answer(code, "application/json", Either::Left(Full::new(Bytes::from(body))))
}

fn error(code: StatusCode, message: &str) -> Response<Answer> {
    json(code, &serde_json::json!({ "error": message }))
}

fn answer(code: StatusCode, kind: &'static str, body: Either<Full<Bytes>, Lines>) -> Response<Answer> {
    let mut response = Response::new(Answer(body));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
