//! From a keeper's configuration to what it needs on the two threads: made ready on the edge, where a user database may be slow.

use crate::child;
use crate::config::KeeperConfig;
use crate::guard::ChildSpec;
use crate::health::{self, Watch};
use crate::hooks::{self, Runners};
use crate::observe::board::Panel;
use crate::observe::series::Series;
use crate::output::{Outlet, Sinks};
use crate::roster::Enlistment;
use std::ffi::OsString;
use std::io;
use std::sync::Arc;
use tokio::task::JoinHandle;

/// What a child may inherit, as this process was given it.
#[derive(Debug)]
pub struct Inheritance {
    environment: Arc<Vec<(OsString, OsString)>>,
    nofile: Option<(u64, u64)>,
}

impl Inheritance {
    /// To be called once: it raises this process's own limit of open files.
    pub fn of_this_process() -> Inheritance {
        Inheritance { environment: child::inherited_environment(), nofile: child::raise_open_files() }
    }

    /// May block for as long as the user database does.
    ///
    /// # Errors
    /// Says which user or group does not exist here.
    pub fn prepare(&self, keeper: &KeeperConfig) -> Result<ChildSpec, String> {
        child::prepare(&keeper.name, &keeper.process, &self.environment, self.nofile)
    }
}

/// The edge's side of one keeper.
#[derive(Debug)]
pub struct Post {
    pub outlet: Arc<Outlet>,
    pub panel: Arc<Panel>,
    /// Its user or group does not exist here.
    pub unfit: bool,
    hooks: Option<JoinHandle<()>>,
}

/// Makes keepers ready.
#[derive(Debug)]
pub struct Outfitter {
    pub sinks: Sinks,
    pub runners: Runners,
    pub places: health::Places,
}

impl Outfitter {
    /// Where its lines go: as before, if that is the same place.
    ///
    /// # Errors
    /// When no thread for a file can be started.
    pub fn outlet(
        &self,
        keeper: &KeeperConfig,
        before: Option<(&Post, &KeeperConfig)>,
    ) -> io::Result<Arc<Outlet>> {
        match before {
            Some((post, before)) if before.output == keeper.output => Ok(Arc::clone(&post.outlet)),
            Some(_) | None => Outlet::new(&keeper.name, &keeper.output, &self.sinks),
        }
    }

    /// Both sides of a keeper; `earlier` is the one it replaces. To be called inside a tokio runtime: its hooks and probes wait in
    /// tasks of their own, which end when the other side is dropped.
    pub fn outfit(
        &self,
        keeper: KeeperConfig,
        lock_key: String,
        child: Result<ChildSpec, String>,
        (outlet, panel): (Arc<Outlet>, Arc<Panel>),
        earlier: Option<Post>,
        why: &'static str,
    ) -> (Post, Enlistment) {
        panel.set_outlet(Arc::clone(&outlet));
        // Its name stands in a label.
        if panel.series().stop_signal != keeper.process.stop_signal {
            panel.set_series(Series::new(keeper.process.stop_signal));
        }
        let series = panel.series();
        let ttl = keeper.timing.ttl();
        let (caller, runner) = hooks::pair(&keeper.name, &keeper.hooks, &child, lock_key.clone(), ttl);
        let earlier = earlier.and_then(|post| post.hooks);
        let hooks = match runner {
            Some(runner) => Some(self.runners.start(runner, earlier)),
            None => earlier,
        };
        let (watch, probes) = Watch::new(&keeper, &child, &outlet, &self.places).unzip();
        if let Some(watch) = watch {
            tokio::spawn(watch.run());
        }
        let post =
            Post { outlet: Arc::clone(&outlet), panel: Arc::clone(&panel), unfit: child.is_err(), hooks };
        let enlistment = Enlistment {
            settings: keeper,
            lock_key,
            child,
            hooks: caller,
            outlet,
            probes,
            panel,
            series,
            foreground: None,
            why,
        };
        (post, enlistment)
    }
}
