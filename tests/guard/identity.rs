//! Environment files, and what an ordinary user may not do.

use super::*;
use keeperd::env_file::EnvFile;
use std::os::unix::fs::PermissionsExt as _;

fn with_file(script: &str, path: &Path, optional: bool) -> Plan {
    let mut plan = shell(script);
    plan.spec.env_file = Some(EnvFile { path: path.to_owned(), optional });
    plan
}

async fn said(mut term: Term) -> String {
    assert_eq!(term.exited().await, Exit::Code(0));
    term.tree_dead().await;
    let said = term.said();
    term.quit().await;
    said
}

pub async fn environment_file_lies_between_what_is_inherited_and_what_is_the_keepers_own() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("env");
    let bin = folder.path().join("bin");
    fs::create_dir(&bin).expect("our folder");
    fs::write(bin.join("only-here"), "#!/bin/sh\necho found $A $B $C\n").expect("our folder");
    fs::set_permissions(bin.join("only-here"), fs::Permissions::from_mode(0o755)).expect("our file");
    fs::write(&file, format!("# below\nB=2\nC=2\nPATH={}:/usr/bin:/bin\n", bin.display()))
        .expect("our folder");
    let mut plan = with_file("", &file, false);
    plan.spec.argv = vec!["only-here".into()];
    Arc::make_mut(&mut plan.spec.env).extend(["A", "B", "C"].map(|name| (name.into(), "1".into())));
    plan.spec.env_over = vec![("C".into(), "3".into())];
    assert_eq!(said(plan.start()).await, "found 1 2 3\n", "and the command is looked up in the file's PATH");
}

pub async fn environment_file_is_read_at_each_start() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("env");
    let mut term = with_file("echo \"v=$VERSION\"; exit 1", &file, true).start();
    for version in ["", "2", "3"] {
        assert_eq!(term.exited().await, Exit::Code(1));
        term.tree_dead().await;
        assert_eq!(term.said(), format!("v={version}\n"));
        let next = version.parse().unwrap_or(1) + 1;
        fs::write(&file, format!("VERSION={next}\n")).expect("our folder");
        assert!(term.ack(spawn()).await.accepted);
    }
    term.tree_dead().await;
    term.said();
    term.quit().await;
}

pub async fn environment_file_that_cannot_be_read_is_a_failed_start() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| folder.path().join(name);
    fs::write(path("latin"), b"A=\xe4\n").expect("our folder");
    let stage = async |name: &str, optional| failed(with_file("echo ran", &path(name), optional)).await;
    assert_eq!(stage("missing", false).await, (Stage::EnvFile, libc::ENOENT));
    assert_eq!(stage("latin", true).await, (Stage::EnvFile, libc::EILSEQ));
    assert_eq!(stage("", true).await, (Stage::EnvFile, libc::EINVAL));
}

pub async fn lines_of_the_environment_file_that_make_no_sense_are_told_by_number() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("env");
    fs::write(&file, "A=1\nexport SECRET=hunter2\n-----BEGIN hunter2\n").expect("our folder");
    let said = said(with_file("echo $A", &file, false).start()).await;
    assert!(said.starts_with("1\n") && said.contains("skipped lines [2, 3]"), "{said}");
    assert!(!said.contains("hunter2"), "{said}");
}

pub async fn working_folder_is_entered_as_the_user() {
    if !nix::unistd::Uid::effective().is_root() {
        println!("    only root can change the user");
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).expect("our folder");
    let mut plan = shell("pwd");
    plan.spec.working_dir = Some(folder.path().to_owned());
    plan.spec.uid = Some(NOBODY);
    assert_eq!(failed(plan).await, (Stage::WorkingDir, libc::EACCES));
}

const NOBODY: u32 = 65534;

/// A guard that is an ordinary user: this very program, started by way of a script where we are root.
struct Ordinary {
    executable: PathBuf,
    _folder: tempfile::TempDir,
}

impl Ordinary {
    fn new() -> Ordinary {
        let folder = tempfile::tempdir().expect("a temporary folder");
        if !nix::unistd::Uid::effective().is_root() {
            return Ordinary { executable: guard::OWN_EXECUTABLE.into(), _folder: folder };
        }
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("our folder");
        let (copy, script) = (folder.path().join("guard"), folder.path().join("script"));
        fs::copy(guard::OWN_EXECUTABLE, &copy).expect("our folder");
        let become_nobody = format!("setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups");
        let title = "keeperd: guard test.keeper";
        let text =
            format!("#!/bin/bash\nexec {become_nobody} bash -c 'exec -a \"{title}\" {}'\n", copy.display());
        fs::write(&script, text).expect("our folder");
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("our file");
        Ordinary { executable: script, _folder: folder }
    }

    fn shell(&self, script: &str) -> Plan {
        Plan { executable: self.executable.clone(), cgroup: false, ..shell(script) }
    }
}

pub async fn what_an_ordinary_user_may_not_do_is_a_failed_start() {
    let ordinary = Ordinary::new();
    let stage = async |change: fn(&mut ChildSpec)| {
        let mut plan = ordinary.shell("echo ran");
        change(&mut plan.spec);
        failed(plan).await
    };
    // Giving up its own groups is refused before, where it has any.
    let (user, errno) = stage(|spec| spec.uid = Some(4242)).await;
    assert!(errno == libc::EPERM && matches!(user, Stage::Uid | Stage::Groups), "{user:?} {errno}");
    assert_eq!(stage(|spec| spec.groups = Some(vec![4243])).await, (Stage::Groups, libc::EPERM));
    assert_eq!(stage(|spec| spec.gid = Some(4242)).await, (Stage::Gid, libc::EPERM));
    assert_eq!(stage(|spec| spec.nice = Some(-5)).await, (Stage::Nice, libc::EACCES));
    let unlimited = |spec: &mut ChildSpec| {
        let hard = u64::MAX;
        spec.limits = vec![Limit { resource: "nofile".into(), soft: 64, hard }];
    };
    assert_eq!(stage(unlimited).await, (Stage::Limits, libc::EPERM));
    assert_eq!(
        stage(|spec| spec.working_dir = Some("/proc/1/fd".into())).await,
        (Stage::WorkingDir, libc::EACCES)
    );
    assert_eq!(stage(|spec| spec.pid_namespace = true).await, (Stage::Namespace, libc::EPERM));
}

/// `user` may name the one that the daemon is already.
pub async fn ordinary_user_keeps_the_groups_it_has() {
    let ordinary = Ordinary::new();
    let mut plan = ordinary.shell("id -u");
    let own = nix::unistd::Uid::effective();
    let uid = if own.is_root() { NOBODY } else { own.as_raw() };
    plan.spec.uid = Some(uid);
    assert_eq!(said(plan.start()).await, format!("{uid}\n"));
}
