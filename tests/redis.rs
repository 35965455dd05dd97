//! The lock on real servers: what one node does with each request, and what a connection survives.
//!
//! Each sentence runs against Redis 6.2, Redis 7.0 (`redis-server` on the PATH) and Valkey 9.1 (both others under `KEEPERD_TEST_SERVERS`).

// Files of production and of the simulation name these by the crate.
use keeperd::{core, lock};

#[path = "simulation/clock.rs"]
#[allow(dead_code, reason = "the simulation uses more of it")]
mod clock;
#[path = "simulation/mutants.rs"]
#[allow(dead_code, reason = "the simulation uses more of it")]
mod mutants;

#[path = "redis/daemon.rs"]
mod daemon;
#[path = "redis/host.rs"]
mod host;
#[path = "e2e/port.rs"]
mod port;
#[path = "redis/server.rs"]
mod server;

/// One test per server version.
macro_rules! sentence {
    ($(#[$doc:meta])* async fn $name:ident($server:ident: Server) $body:block) => {
        $(#[$doc])*
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            async fn test(#[allow(unused_mut)] mut $server: Server) $body

            fn on(version: Version) {
                if !version.is_to_be_had() {
                    return;
                }
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                tokio::task::LocalSet::new().block_on(&runtime, test(Server::start(version)));
            }

            #[test]
            fn redis_6_2() {
                on(Version::Redis62);
            }

            #[test]
            fn redis_7_0() {
                on(Version::Redis70);
            }

            #[test]
            fn valkey_9_1() {
                on(Version::Valkey91);
            }
        }
    };
}

#[path = "redis/answers.rs"]
mod answers;
#[path = "redis/bids.rs"]
mod bids;
#[path = "redis/compose.rs"]
mod compose;
#[path = "redis/connection.rs"]
mod connection;
#[path = "redis/differential/mod.rs"]
mod differential;
#[path = "redis/pauses.rs"]
mod pauses;
#[path = "redis/run.rs"]
mod run;
#[path = "redis/secure.rs"]
mod secure;
#[path = "redis/tools.rs"]
mod tools;
#[path = "redis/wakes.rs"]
mod wakes;
