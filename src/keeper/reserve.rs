//! A guard in reserve: a keeper that stands by has one started, so that its child runs milliseconds sooner once it is elected.

use super::{Input, Keeper, Shared};
use crate::guard::{Duty, OWN_EXECUTABLE, Unarmed};
use std::future::Future;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::{JoinHandle, spawn_blocking, spawn_local};
use tokio::time::Instant;

/// A keeper that is elected at the daemon's start, or soon after its last term, needs none.
const PAUSE: Duration = Duration::from_millis(250);
/// In one daemon, at some 0.3 MiB each. Keepers beyond start their guards when they are elected.
const MAX: u32 = 32;

/// What there is between two terms.
#[derive(Debug)]
pub enum Reserve {
    /// None will be started: there is no use for one, no room, or it failed.
    Never,
    Later(Instant),
    Coming(JoinHandle<io::Result<Unarmed>>),
    Waiting(Unarmed),
}

impl Reserve {
    pub fn of(keeper: &Keeper) -> Reserve {
        // `keeperd run` has its guard at once; without a child there is nothing to guard.
        let wanted = keeper.foreground.is_none() && keeper.child.is_ok();
        if wanted { Reserve::Later(Instant::now() + PAUSE) } else { Reserve::Never }
    }

    /// Cancel-safe.
    pub async fn next(&mut self) -> Input {
        match self {
            Reserve::Never | Reserve::Waiting(_) => std::future::pending().await,
            Reserve::Later(at) => {
                tokio::time::sleep_until(*at).await;
                Input::ReserveDue
            }
            Reserve::Coming(birth) => {
                Input::Reserve(birth.await.unwrap_or_else(|error| Err(io::Error::other(error))))
            }
        }
    }

    pub fn start(&mut self, keeper: &Keeper) {
        let shared = &keeper.shared;
        if shared.reserves.get() == MAX {
            *self = Reserve::Never;
            return;
        }
        shared.reserves.update(|reserves| reserves + 1);
        shared.births.update(|births| births + 1);
        let (name, output) = (Arc::clone(&keeper.name), keeper.outlet.wiring);
        *self = Reserve::Coming(spawn_blocking(move || {
            Unarmed::start(Duty::Term, Path::new(OWN_EXECUTABLE), &name, output)
        }));
    }

    pub fn born(&mut self, born: io::Result<Unarmed>, keeper: &Keeper) {
        let shared = &keeper.shared;
        shared.births.update(|births| births - 1);
        *self = match born {
            Ok(guard) => {
                shared.guards.borrow_mut().insert(guard.pid());
                Reserve::Waiting(guard)
            }
            Err(error) => {
                shared.reserves.update(|reserves| reserves - 1);
                tracing::debug!(keeper = &*keeper.name, %error, "no guard in reserve");
                Reserve::Never
            }
        };
    }

    /// For a term that begins, and is a birth already: until then nobody takes the guard for an orphan.
    pub fn take(self, shared: &Rc<Shared>) -> Option<Unarmed> {
        match self {
            Reserve::Waiting(guard) => {
                shared.reserves.update(|reserves| reserves - 1);
                shared.guards.borrow_mut().remove(&guard.pid());
                Some(guard)
            }
            Reserve::Never | Reserve::Later(_) | Reserve::Coming(_) => {
                self.dismiss(shared);
                None
            }
        }
    }

    pub fn dismiss(self, shared: &Rc<Shared>) {
        match self {
            Reserve::Never | Reserve::Later(_) => {}
            Reserve::Coming(birth) => end(async move { birth.await.ok()?.ok() }, shared),
            Reserve::Waiting(guard) => {
                shared.births.update(|births| births + 1);
                shared.guards.borrow_mut().remove(&guard.pid());
                end(std::future::ready(Some(guard)), shared);
            }
        }
    }
}

/// On another thread; a birth until it is over.
fn end(guard: impl Future<Output = Option<Unarmed>> + 'static, shared: &Rc<Shared>) {
    let shared = Rc::clone(shared);
    spawn_local(async move {
        if let Some(guard) = guard.await {
            let _ = spawn_blocking(|| guard.dismiss()).await;
        }
        shared.births.update(|births| births - 1);
        shared.reserves.update(|reserves| reserves - 1);
    });
}
