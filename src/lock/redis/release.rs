//! Releasing without a daemon: what is left of a guard does it when the daemon is gone.

use super::access::Access;
use super::endpoint::Endpoint;
use super::reply;
use super::scripts::{Invocation, Keys};
use redis::{AsyncConnectionConfig, Pipeline, ProtocolVersion};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::OwnedFd;
use std::time::Duration;
use tokio::task::JoinSet;

/// A guard waits this long for its last deed (R20).
pub const RELEASE_LIMIT: Duration = Duration::from_millis(500);
/// After a quorum, for those whose answer is on its way: a vote left behind costs the next holder a repair.
const GRACE: Duration = Duration::from_millis(10);
/// No honest specification is larger.
const SPEC_MAX: u64 = 1 << 20;

/// What to release, and where. Holds credentials: it travels in a sealed memfd only.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseSpec {
    pub access: Access,
    /// The whole lock key.
    pub key: String,
    pub value: String,
    /// Enough answers.
    pub quorum: usize,
}

impl fmt::Debug for ReleaseSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "release of {} on {} nodes", self.key, self.access.nodes.len())
    }
}

/// Releases over fresh connections, all at once, until a quorum has answered or `limit` has passed. How many answered.
pub async fn release_everywhere(spec: &ReleaseSpec, limit: Duration) -> usize {
    let mut tasks = JoinSet::new();
    for endpoint in spec.access.endpoints().into_iter().flatten() {
        let release = Invocation::release(&Keys::of(&spec.key), &spec.value);
        tasks.spawn(release_at(endpoint, release, limit));
    }
    let mut done = 0;
    let count = async {
        while done < spec.quorum {
            match tasks.join_next().await {
                Some(Ok(true)) => done += 1,
                Some(Ok(false) | Err(_)) => {}
                None => return,
            }
        }
        let rest = async {
            while let Some(result) = tasks.join_next().await {
                done += usize::from(matches!(result, Ok(true)));
            }
        };
        let _ = tokio::time::timeout(GRACE, rest).await;
    };
    // Running out of time is an outcome, not an error: what is left expires on the nodes.
    let _ = tokio::time::timeout(limit, count).await;
    done
}

async fn release_at(endpoint: Endpoint, release: Invocation, limit: Duration) -> bool {
    let config = AsyncConnectionConfig::new().set_response_timeout(Some(limit));
    let Ok(mut connected) = endpoint.connect(ProtocolVersion::RESP2, config, limit).await else {
        return false;
    };
    let mut pipe = Pipeline::new();
    pipe.add_command(release.command(None));
    let replies = connected.con.send_packed_commands(&pipe, 0, 1).await;
    replies.is_ok_and(|replies| reply::release(&replies).is_some())
}

/// Body of the releaser: reads a [`ReleaseSpec`] as JSON from the sealed memfd and carries it out. Exit status 0 if a quorum answered.
pub fn releaser_main(spec: OwnedFd, limit: Duration) -> i32 {
    let mut file = File::from(spec);
    let mut json = String::new();
    let read = file.rewind().and_then(|()| file.take(SPEC_MAX).read_to_string(&mut json));
    let Some(spec) = read.ok().and_then(|_| serde_json::from_str::<ReleaseSpec>(&json).ok()) else {
        return 1;
    };
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return 1 };
    let done = runtime.block_on(release_everywhere(&spec, limit));
    // A name that is still being resolved holds a thread; it must not hold the exit.
    runtime.shutdown_background();
    i32::from(done < spec.quorum)
}
