"""docker-compose.redis.yml, read by the parser and the schema of the Compose specification (PyPI: compose-spec)."""

import re
import sys

from compose_spec import PyOptions

text = open(sys.argv[1]).read()
# What compose does before it parses.
text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text).replace("$$", "$")
compose = PyOptions(apply_merge=True).from_yaml(text)
# Volumes that are used are declared, and the like.
compose.validate()
compose.to_spec()
services = compose.to_dict()["services"]
assert list(services) == ["redis-1", "redis-2", "redis-3"], list(services)
for number, (name, service) in enumerate(services.items()):
    assert service["ports"] == [f"127.0.0.1:{6379 + number}:6379"], service["ports"]
    assert service["volumes"] == [f"{name}:/data"], service["volumes"]
    assert service["restart"] == "unless-stopped", service["restart"]
    assert service["healthcheck"]["test"] == '[ "$(redis-cli ping)" = PONG ]', service["healthcheck"]
    words = service["command"]
    for wanted in (["--appendonly", "yes"], ["--appendfsync", "always"], ["--maxmemory-policy", "noeviction"]):
        assert words[words.index(wanted[0]) + 1] == wanted[1], words
