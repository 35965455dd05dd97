//! A guard in reserve: a keeper that stands by has one started, so that its child runs milliseconds sooner once it is elected.

use super::{Input, Keeper, Shared};
use crate::guard::{Duty, OWN_EXECUTABLE, Unarmed};
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::{JoinHandle, spawn_blocking, spawn_local};
use tokio::time::Instant;

/// A keeper that is elected at the daemon's start, or soon after its last term, needs none.
const PAUSE: Duration = Duration::from_millis(250);
/// Until it is asked again whether there is room, and a use.
const AGAIN: Duration = Duration::from_secs(10);
/// In one daemon, at some 0.3 MiB each. Keepers beyond start their guards when they are elected.
const MAX: u32 = 32;

/// What there is between two terms.
#[derive(Debug)]
pub enum Reserve {
    Never,
    Later(Instant),
    Coming(JoinHandle<io::Result<Unarmed>>),
    /// Should it die meanwhile, that is seen when it is wanted.
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
        if shared.reserves.get() == MAX || keeper.election.is_paused() {
            *self = Reserve::Later(Instant::now() + AGAIN);
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
                Reserve::Later(Instant::now() + AGAIN)
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
        let shared = Rc::clone(shared);
        match self {
            Reserve::Never | Reserve::Later(_) => {}
            Reserve::Waiting(guard) => drop(spawn_local(end(guard, shared))),
            Reserve::Coming(birth) => drop(spawn_local(async move {
                let born = birth.await;
                shared.births.update(|births| births - 1);
                match born {
                    Ok(Ok(guard)) => {
                        shared.guards.borrow_mut().insert(guard.pid());
                        end(guard, shared).await;
                    }
                    Ok(Err(_)) | Err(_) => shared.reserves.update(|reserves| reserves - 1),
                }
            })),
        }
    }
}

/// On another thread, because it waits; known as a guard until it is over.
async fn end(guard: Unarmed, shared: Rc<Shared>) {
    let pid = guard.pid();
    let _ = spawn_blocking(|| guard.dismiss()).await;
    shared.guards.borrow_mut().remove(&pid);
    shared.reserves.update(|reserves| reserves - 1);
}
