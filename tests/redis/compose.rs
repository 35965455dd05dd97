//! The command lines of docker-compose.redis.yml, run by the server at hand. The file itself is parsed by tests/package/compose.py.

use super::server::{Server, Version};

const FILE: &str = include_str!("../../docker-compose.redis.yml");

#[test]
fn a_service_of_the_compose_file_keeps_every_lock_on_its_disk_and_throws_none_away() {
    // All three by one anchor; a list in one line is JSON, too.
    let lines: Vec<&str> = FILE.lines().filter_map(|line| line.trim().strip_prefix("command: ")).collect();
    let [line] = lines[..] else { panic!("{lines:?}") };
    let words: Vec<String> = serde_json::from_str(line).expect("a list");
    assert_eq!(words[0], "redis-server");
    let server = Server::start_as(Version::Redis70, "", |_, _| words[1..].to_vec());
    let wanted =
        [("appendonly", "yes"), ("appendfsync", "always"), ("save", ""), ("maxmemory-policy", "noeviction")];
    for (setting, value) in wanted {
        let said: Vec<String> = server.run(&["CONFIG", "GET", setting]);
        assert_eq!(said, [setting, value]);
    }
}
