//! Programs that a machine may or may not have. tests/run fetches them; elsewhere a test that wants one says "skip" and passes.

use std::path::{Path, PathBuf};

/// In `.cache/tools` of the repository, or in the path.
pub fn find(name: &str) -> Option<PathBuf> {
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/tools/usr/bin").join(name);
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let installed = std::env::split_paths(&folders).map(|folder| folder.join(name));
    [fetched].into_iter().chain(installed).find(|path| path.is_file())
}

/// The first of these that there is; says "skip" when there is none.
pub fn find_or_skip(names: &[&str]) -> Option<PathBuf> {
    let found = names.iter().find_map(|name| find(name));
    if found.is_none() {
        println!("skip: this machine has no {}", names.join(" or "));
    }
    found
}
