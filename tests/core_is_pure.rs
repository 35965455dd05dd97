//! The core names no other module of the crate and no crate but std: what the linter's lists cannot say.

use std::fs;
use std::path::Path;

fn sources(folder: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).expect("src/core is there") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            sources(&path, found);
        } else {
            let text = fs::read_to_string(&path).expect("UTF-8");
            found.push((path.display().to_string(), text));
        }
    }
}

#[test]
fn the_core_uses_nothing_but_itself_and_the_tame_part_of_std() {
    let allowed =
        ["std::fmt", "std::ops", "std::time::Duration", "std::collections::", "std::error", "std::array"];
    let mut files = Vec::new();
    sources(Path::new("src/core"), &mut files);
    assert!(files.len() >= 10, "found only {} files", files.len());
    for (name, text) in files {
        for (number, line) in text.lines().enumerate() {
            let code = line.trim();
            let Some(used) = code.strip_prefix("use ").or_else(|| code.strip_prefix("pub use ")) else {
                continue;
            };
            let own = ["super", "crate::core", "self"].iter().any(|path| used.starts_with(path));
            let child_module = [
                "bid::",
                "candidate::",
                "child::",
                "context::",
                "extension::",
                "health::",
                "release::",
                "repair::",
                "standby::",
                "term::",
            ];
            let own = own || child_module.iter().any(|path| used.starts_with(path));
            let tame = allowed.iter().any(|path| used.starts_with(path));
            assert!(own || tame, "{name}:{}: the core must not use {used}", number + 1);
        }
        for word in
            ["crate::lock", "crate::guard", "crate::observe", "crate::clock", "tokio::", "tracing::", "nix::"]
        {
            assert!(!text.contains(word), "{name} names {word}");
        }
    }
}
