//! Where files stand when the configuration does not say.

use super::Env;
use nix::unistd::{AccessFlags, Uid, User, eaccess};
use std::path::{Path, PathBuf};

const SYSTEM: &str = "/run/keeperd";

/// The control socket: the service's runtime directory, the system's, the user's, a last resort.
pub fn control_socket(env: &Env) -> PathBuf {
    let directory = given_by_systemd(env, "RUNTIME_DIRECTORY")
        .or_else(|| usable(Path::new(SYSTEM)))
        .unwrap_or_else(|| of_user(env));
    directory.join("keeperd.sock")
}

/// Where a daemon's control socket may be: it may run as another user than who looks for it.
pub fn control_sockets(env: &Env) -> Vec<PathBuf> {
    let directories = given_by_systemd(env, "RUNTIME_DIRECTORY").into_iter();
    let directories = directories.chain([PathBuf::from(SYSTEM), of_user(env)]);
    directories.map(|directory| directory.join("keeperd.sock")).collect()
}

fn of_user(env: &Env) -> PathBuf {
    absolute(env, "XDG_RUNTIME_DIR").map_or_else(
        || PathBuf::from(format!("/tmp/keeperd-{}", Uid::effective())),
        |directory| directory.join("keeperd"),
    )
}

/// The lock files of engine "local". Never below /tmp: what is cleaned there is a lock lost.
pub fn lock_directory(env: &Env) -> Option<PathBuf> {
    given_by_systemd(env, "STATE_DIRECTORY")
        .or_else(|| usable(Path::new("/var/lib/keeperd")))
        .or_else(|| Some(absolute(env, "XDG_STATE_HOME")?.join("keeperd")))
        .or_else(|| Some(home(env)?.join(".local/state/keeperd")))
}

/// systemd gives a list separated by colons when the unit asks for several.
fn given_by_systemd(env: &Env, variable: &str) -> Option<PathBuf> {
    let first = env.get(variable)?.split(':').next()?;
    Some(PathBuf::from(first)).filter(|path| path.is_absolute())
}

/// The XDG rules: a relative path is as good as none.
fn absolute(env: &Env, variable: &str) -> Option<PathBuf> {
    env.get(variable).map(PathBuf::from).filter(|path| path.is_absolute())
}

fn home(env: &Env) -> Option<PathBuf> {
    absolute(env, "HOME").or_else(|| User::from_uid(Uid::effective()).ok()?.map(|user| user.dir))
}

/// Can be written, or made.
fn usable(directory: &Path) -> Option<PathBuf> {
    let probe = if directory.exists() { directory } else { directory.parent()? };
    eaccess(probe, AccessFlags::W_OK | AccessFlags::X_OK).ok()?;
    Some(directory.to_owned())
}
