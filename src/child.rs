//! From a keeper's configuration to what the guard is told to run: names become numbers, the environment is put together.

use crate::config::{Isolation, ProcessConfig};
use crate::core::lease::FencingToken;
use crate::guard::{ChildSpec, Limit};
use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{Group, Uid, User, getgrouplist};
use std::ffi::{CString, OsString};
use std::sync::Arc;
use std::time::Duration;

/// Variables that are keeperd's own and would mislead a child (DESIGN.md 2.3).
const OURS: [&str; 14] = [
    "NOTIFY_SOCKET",
    "CREDENTIALS_DIRECTORY",
    "KEEPERD_REDIS_PASSWORD",
    "LISTEN_FDS",
    "LISTEN_PID",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    // Set anew for each term: of two, some programs would take the first.
    "KEEPERD_KEEPER",
    "KEEPERD_LOCK_KEY",
    "KEEPERD_FENCING_TOKEN",
    "KEEPERD_TTL_MS",
    "KEEPERD_REASON",
    "KEEPERD_EXIT_CODE",
    "KEEPERD_EXIT_SIGNAL",
];
const OURS_PREFIXES: [&str; 2] = ["LISTEN_", "WATCHDOG_"];
/// Where commands are looked up when nothing says so.
const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The daemon's environment without what is keeperd's own.
pub fn inherited_environment() -> Arc<Vec<(OsString, OsString)>> {
    let ours = |name: &str| OURS.contains(&name) || OURS_PREFIXES.iter().any(|p| name.starts_with(p));
    Arc::new(std::env::vars_os().filter(|(name, _)| !name.to_str().is_some_and(ours)).collect())
}

/// Everything about the child but its token.
///
/// Asks the user database, which may be a network away: to be called before the core thread has anything to do.
///
/// # Errors
/// Says which user or group does not exist here. That keeps one host out, not the daemon down.
pub fn prepare(
    keeper: &str,
    process: &ProcessConfig,
    inherited: &Arc<Vec<(OsString, OsString)>>,
    nofile: Option<(u64, u64)>,
) -> Result<ChildSpec, String> {
    let user = process.user.as_deref().map(find_user).transpose()?;
    let gid = match (&process.group, &user) {
        (Some(group), _) => Some(find_group(group)?),
        (None, Some(user)) => Some(user.gid.as_raw()),
        (None, None) => None,
    };
    let groups = match (&process.groups, &user) {
        (Some(names), _) => Some(names.iter().map(|name| find_group(name)).collect::<Result<_, _>>()?),
        // The daemon itself may be an ordinary user, whose session has the groups of the time it began.
        (None, Some(user)) if user.uid == Uid::effective() && !user.uid.is_root() => None,
        (None, Some(user)) => Some(groups_of(user)?),
        (None, None) => None,
    };
    let mut env = if process.clear_env { Arc::default() } else { Arc::clone(inherited) };
    let mut set = |name: &str, value: OsString| {
        let env = Arc::make_mut(&mut env);
        env.retain(|(known, _)| known != name);
        env.push((name.into(), value));
    };
    if process.clear_env || !inherited.iter().any(|(name, _)| name == "PATH") {
        set("PATH", PATH_DEFAULT.into());
    }
    if let Some(user) = &user {
        set("USER", user.name.clone().into());
        set("LOGNAME", user.name.clone().into());
        set("HOME", user.dir.clone().into());
    }
    let mut limits: Vec<Limit> = process
        .limits
        .iter()
        .map(|(name, limit)| Limit { resource: name.clone(), soft: limit.soft, hard: limit.hard })
        .collect();
    // The daemon has raised its own; the child gets what the daemon was given.
    if let Some((soft, hard)) = nofile.filter(|_| !process.limits.contains_key("nofile")) {
        limits.push(Limit { resource: "nofile".into(), soft, hard });
    }
    Ok(ChildSpec {
        keeper: keeper.to_owned(),
        argv: process.command.iter().map(Into::into).collect(),
        env,
        env_file: process.env_file.clone(),
        env_over: process.env.iter().map(|(name, value)| (name.into(), value.into())).collect(),
        working_dir: process.working_dir.clone(),
        uid: user.as_ref().map(|user| user.uid.as_raw()),
        gid,
        groups,
        umask: process.umask,
        limits,
        nice: process.nice,
        no_new_privileges: process.no_new_privileges,
        pid_namespace: process.isolate == Isolation::Pid,
        stop_signal: process.stop_signal as i32,
    })
}

/// What the child of a term, and its hooks, are told (DESIGN.md 2.3).
pub fn term_variables(
    keeper: &str,
    lock_key: &str,
    token: FencingToken,
    ttl: Duration,
) -> [(OsString, OsString); 4] {
    [
        ("KEEPERD_KEEPER".into(), keeper.into()),
        ("KEEPERD_LOCK_KEY".into(), lock_key.into()),
        ("KEEPERD_FENCING_TOKEN".into(), token.to_string().into()),
        ("KEEPERD_TTL_MS".into(), ttl.as_millis().to_string().into()),
    ]
}

/// Raises this process's limit of open files, and returns what it was: a keeper costs half a dozen.
pub fn raise_open_files() -> Option<(u64, u64)> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    // Refused only when it is the maximum already.
    let _ = nix::sys::resource::setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    Some((soft, hard))
}

fn find_user(name: &str) -> Result<User, String> {
    let found = match name.parse() {
        Ok(uid) => User::from_uid(Uid::from_raw(uid)),
        Err(_) => User::from_name(name),
    };
    match found {
        Ok(Some(user)) => Ok(user),
        Ok(None) => Err(format!("there is no user {name:?} on this host")),
        Err(error) => Err(format!("user {name:?} cannot be looked up: {error}")),
    }
}

fn find_group(name: &str) -> Result<u32, String> {
    if let Ok(gid) = name.parse() {
        return Ok(gid);
    }
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        Ok(None) => Err(format!("there is no group {name:?} on this host")),
        Err(error) => Err(format!("group {name:?} cannot be looked up: {error}")),
    }
}

fn groups_of(user: &User) -> Result<Vec<u32>, String> {
    let name = CString::new(user.name.clone()).map_err(|_| "a user's name has a NUL byte".to_owned())?;
    let groups = getgrouplist(&name, user.gid)
        .map_err(|error| format!("groups of {:?} cannot be looked up: {error}", user.name))?;
    Ok(groups.into_iter().map(|gid| gid.as_raw()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Env, parse};
    use std::path::Path;

    /// What `lines` of a keeper become, with `A` and the daemon's own variables inherited.
    fn prepared(lines: &str) -> Result<ChildSpec, String> {
        let text = format!(
            "[lock]\nengine = \"local\"\ndirectory = \"/tmp\"\n[[keeper]]\nname = \"k\"\ncommand = [\"true\"]\n{lines}\n"
        );
        let config =
            parse(Path::new("t.toml"), &text, &Env::default()).unwrap_or_else(|errors| panic!("{errors}"));
        let inherited = [("A", "1"), ("HOME", "/nowhere")].map(|(name, value)| (name.into(), value.into()));
        prepare("k", &config.keepers[0].process, &Arc::new(inherited.into()), Some((64, 128)))
    }

    fn value<'a>(env: &'a [(OsString, OsString)], name: &str) -> Option<&'a str> {
        env.iter().find(|(known, _)| known == name).and_then(|(_, value)| value.to_str())
    }

    #[test]
    fn a_user_or_group_that_is_not_here_is_named() {
        for (lines, why) in [
            ("user = \"no-such-user\"", "there is no user \"no-such-user\" on this host"),
            ("user = \"4294967294\"", "there is no user \"4294967294\" on this host"),
            ("group = \"no-such-group\"", "there is no group \"no-such-group\" on this host"),
            ("groups = [\"root\", \"no-such-group\"]", "there is no group \"no-such-group\" on this host"),
        ] {
            assert_eq!(prepared(lines).expect_err(lines), why);
        }
    }

    #[test]
    fn a_user_brings_group_groups_and_variables_and_env_lies_over_them() {
        let spec =
            prepared("user = \"root\"\nenv = { HOME = \"/elsewhere\" }").expect("everybody knows root");
        assert_eq!((spec.uid, spec.gid), (Some(0), Some(0)));
        assert!(spec.groups.is_none_or(|groups| groups.contains(&0)));
        assert_eq!((value(&spec.env, "USER"), value(&spec.env, "HOME")), (Some("root"), Some("/root")));
        assert_eq!((value(&spec.env, "A"), value(&spec.env_over, "HOME")), (Some("1"), Some("/elsewhere")));
        let numbers =
            prepared("user = \"0\"\ngroup = \"7\"\ngroups = [\"8\"]").expect("numbers need no names");
        assert_eq!((numbers.uid, numbers.gid, numbers.groups), (Some(0), Some(7), Some(vec![8])));
    }

    #[test]
    fn a_cleared_environment_has_a_path_and_nothing_else() {
        let spec = prepared("clear_env = true").expect("no user to look up");
        assert_eq!(*spec.env, [("PATH".into(), PATH_DEFAULT.into())]);
        assert_eq!((spec.uid, spec.groups, spec.pid_namespace), (None, None, false));
    }

    #[test]
    fn the_child_gets_the_daemons_limit_of_open_files_unless_it_has_its_own() {
        let nofile = |lines| prepared(lines).expect("no user to look up").limits;
        let limit = |soft, hard| vec![Limit { resource: "nofile".into(), soft, hard }];
        assert_eq!(nofile(""), limit(64, 128));
        assert_eq!(nofile("limits = { nofile = 32 }"), limit(32, 32));
    }
}
