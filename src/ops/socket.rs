//! Where the daemon of this host listens: found without a configuration that is right, or that this user may read.

use super::check::EXIT_CONFIG;
use super::client::EXIT_NOT_RUNNING;
use crate::cli::CONFIG_DEFAULT;
use crate::config::{self, Env};
use std::fmt::Write;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("{}: {why}; the socket itself can be named with --socket PATH", file.display())]
    Config { file: PathBuf, why: String },
    #[error(
        "no keeperd answers here; is it running? (systemctl status keeperd)\nTried:{tried}\nAnother place can be named with --socket PATH."
    )]
    Nowhere { tried: String },
}

impl SocketError {
    pub fn exit_code(&self) -> i32 {
        match self {
            SocketError::Config { .. } => EXIT_CONFIG,
            SocketError::Nowhere { .. } => EXIT_NOT_RUNNING,
        }
    }
}

/// The socket that is named on the command line, else in the file, else the first of the usual places where a daemon answers.
///
/// # Errors
/// When a file that was asked for cannot be read; when nobody answers in any of the usual places.
pub fn find(named: Option<&Path>, file: &Path, env: &Env) -> Result<PathBuf, SocketError> {
    if let Some(path) = named {
        return Ok(path.to_owned());
    }
    let unread = match config::socket_named_in(file) {
        Ok(Some(path)) => return Ok(path),
        Ok(None) => None,
        Err(why) if file == Path::new(CONFIG_DEFAULT) => Some(why),
        Err(why) => return Err(SocketError::Config { file: file.to_owned(), why }),
    };
    let (mut tried, mut closed) = (String::new(), None);
    for place in config::control_sockets(env) {
        match UnixStream::connect(&place) {
            Ok(_) => return Ok(place),
            Err(error) => {
                // Writing to a string does not fail.
                let _ = write!(tried, "\n  {}: {error}", place.display());
                if error.kind() == io::ErrorKind::PermissionDenied {
                    closed.get_or_insert(place);
                }
            }
        }
    }
    if let Some(why) = unread {
        let _ = write!(tried, "\n  {}, for another place: {why}", file.display());
    }
    closed.ok_or(SocketError::Nowhere { tried })
}
