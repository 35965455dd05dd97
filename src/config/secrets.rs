//! What opens the nodes: user name, password and certificates, and whether others can read them.

use super::Env;
use super::decode::{Field, Item, Located, Table};
use super::report::{Place, Report, Source};
use super::schema::{RawLock, TLS};
use crate::lock::redis::{ClientPem, Login, Part, Pem};
use nix::unistd::{Uid, getgid, getgroups};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

pub const PASSWORD_VARIABLE: &str = "KEEPERD_REDIS_PASSWORD";
/// The name under which systemd hands over the password (`LoadCredential=redis-password:…`).
const CREDENTIAL: &str = "redis-password";
/// Every guard has a copy of the certificates for its releaser.
const FILE_MAX: u64 = 64 << 10;

/// `tls = { ca, cert, key }`.
#[derive(Clone, Debug, Default)]
pub struct RawTls {
    ca: Field<PathBuf>,
    cert: Field<PathBuf>,
    key: Field<PathBuf>,
}

pub fn tls(item: &Item<'_>, report: &mut Report) -> Option<RawTls> {
    const EXPECTED: &str = "a table such as { ca = \"ca.pem\", cert = \"client.pem\", key = \"client.key\" }";
    let Some(entries) = item.value().as_table() else { return item.wrong_type(report, EXPECTED) };
    let table = Table::open(entries, item.place(), item.source(), &TLS, &[], report);
    let [ca, cert, key] = ["ca", "cert", "key"].map(|key| table.field(key, report, Item::path));
    match (&cert, &key) {
        (Field::Given(_), Field::Absent) => item.refuse(report, "has a cert without its key"),
        (Field::Absent, Field::Given(_)) => item.refuse(report, "has a key without its cert"),
        (_, _) => Some(RawTls { ca, cert, key }),
    }
}

/// User name and password; one source of the password wins over the next, and what is passed over is said.
pub fn login(lock: &RawLock, env: &Env, report: &mut Report) -> Login {
    let variable = env.get(PASSWORD_VARIABLE).map(|text| {
        let place = Source::variable(PASSWORD_VARIABLE).place(0);
        (PASSWORD_VARIABLE, check_password(text).map_err(|why| report.error(&place, why)).ok())
    });
    let file = lock.password_file.given_value().map(|path| {
        let place = lock.password_file.place().expect("given");
        ("password_file", read_password(path, place, report))
    });
    // A credential that the unit does not name is not there.
    let credential = env.get("CREDENTIALS_DIRECTORY").map(|folder| Path::new(folder).join(CREDENTIAL));
    let credential = credential.filter(|path| path.exists()).map(|path| {
        let place = Source::variable("CREDENTIALS_DIRECTORY").place(0);
        ("the credential redis-password", read_password(&path, &place, report))
    });
    let mut sources = [variable, file, credential].into_iter().flatten();
    let (used, password) = sources.next().unzip();
    for (other, _) in sources {
        report.warn(format!(
            "the Redis password is in {other} and in {}: the latter counts",
            used.unwrap_or_default()
        ));
    }
    let username = lock.username.clone();
    // A credential is there for the daemon only, so this may be said to somebody who checks the file by hand.
    if let (Field::Given(username), None, Field::Absent) = (&username, used, &lock.password_file) {
        report.warn_at(
            &username.place,
            format!("no password is known for username: password_file, the systemd credential {CREDENTIAL} or {PASSWORD_VARIABLE}"),
        );
    }
    Login { username: username.value(), password: password.flatten() }
}

fn check_password(text: &str) -> Result<String, &'static str> {
    // Editors and `echo` end a file with a newline.
    let text = text.strip_suffix('\n').map_or(text, |text| text.strip_suffix('\r').unwrap_or(text));
    match text {
        "" => Err("is empty; it must hold the password"),
        text if text.contains(['\n', '\r', '\0']) => {
            Err("must hold the password on one line and nothing else")
        }
        text => Ok(text.to_owned()),
    }
}

fn read_password(path: &Path, place: &Place, report: &mut Report) -> Option<String> {
    let text = read(path, place, report)?;
    warn_if_readable(path, "the Redis password", report);
    let refused = |why| report.error(place, format!("{} {why}", path.display()));
    check_password(&text).map_err(refused).ok()
}

/// The certificates; `wanted` when any node is `rediss://`.
pub fn pem(tls: &Field<RawTls>, wanted: bool, source: &std::sync::Arc<Source>, report: &mut Report) -> Pem {
    if let (Some(place), false) = (tls.place(), wanted) {
        report.warn_at(place, "tls has no effect: no node is rediss://");
        return Pem::default();
    }
    if !wanted || tls.is_bad() {
        return Pem::default();
    }
    let RawTls { ca, cert, key } = tls.given_value().cloned().unwrap_or_default();
    let errors = report.count();
    let mut text = |field: &Field<PathBuf>| {
        let Field::Given(Located { value, place }) = field else { return None };
        read(value, place, report)
    };
    let (ca_text, cert_text, key_text) = (text(&ca), text(&cert), text(&key));
    if report.count() > errors || [&ca, &cert, &key].into_iter().any(Field::is_bad) {
        return Pem::default();
    }
    if let Some(path) = key.given_value() {
        warn_if_readable(path, "the private key", report);
    }
    let client = cert_text.zip(key_text).map(|(cert, key)| ClientPem { cert, key });
    let pem = Pem { ca: ca_text, client };
    if let Err(bad) = pem.client_config() {
        let (name, field) = match bad.part {
            Part::Ca => ("ca", &ca),
            Part::Cert => ("cert", &cert),
            Part::Key => ("key", &key),
        };
        let place = field.place().or(tls.place()).cloned().unwrap_or_else(|| source.place(0));
        report.error(&place, format!("{name} in [lock] tls {bad}"));
    }
    pem
}

fn read(path: &Path, place: &Place, report: &mut Report) -> Option<String> {
    let mut text = String::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(FILE_MAX + 1).read_to_string(&mut text));
    match read {
        Ok(length) if length as u64 <= FILE_MAX => return Some(text),
        Ok(_) => report.error(place, format!("{} is larger than {} KiB", path.display(), FILE_MAX >> 10)),
        Err(error) => report.error(place, format!("{} cannot be read: {error}", path.display())),
    }
    None
}

/// `what` stands in the file.
pub fn warn_if_readable(path: &Path, what: &str, report: &mut Report) {
    let Ok(metadata) = std::fs::metadata(path) else { return };
    let (file, mode) = (path.display(), metadata.mode());
    // A daemon that is not root may itself need the group to read it; root's own group has no other members.
    let mine =
        |gid| getgid().as_raw() == gid || getgroups().is_ok_and(|all| all.iter().any(|g| g.as_raw() == gid));
    let by_group =
        metadata.gid() == 0 || (metadata.uid() != Uid::effective().as_raw() && mine(metadata.gid()));
    if mode & 0o004 != 0 {
        report.warn(format!("{file} holds {what} and every user can read it; chmod o-r {file}"));
    } else if mode & 0o040 != 0 && !by_group {
        report.warn(format!("{file} holds {what} and its group can read it; chmod g-r {file}"));
    }
}
