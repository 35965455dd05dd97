//! Rules taken out of the scripts, each by another text in the place of one.

#[derive(Debug)]
pub struct Break {
    /// What no longer holds.
    pub rule: &'static str,
    pub text: &'static str,
    pub instead: &'static str,
}

pub const BREAKS: &[Break] = &[
    Break {
        rule: "extend never creates",
        text: "if there == value and not released then",
        instead: "if not there and ttl > 0 then redis.call('SET', lock, value, 'PX', ttl) there = value end
                  if there == value and not released then",
    },
    Break {
        rule: "an extension lasts a whole ttl",
        text: "redis.call('PEXPIRE', lock, ttl)",
        instead: "redis.call('PEXPIRE', lock, 1000)",
    },
    Break {
        rule: "extend writes the token back",
        text: "    if (tonumber(f[1]) or 0) < token then",
        instead: "    if false then",
    },
    Break {
        rule: "a foreign shadow is a foreign lease",
        text: "if shade and shade ~= value then return held('foreign'",
        instead: "if false then return held('foreign'",
    },
    Break {
        rule: "the shadow keeps a lock that was deleted by hand",
        text: "if there or (shade and shade ~= value) then return held('held'",
        instead: "if there then return held('held'",
    },
    Break {
        rule: "a late request takes nothing",
        text: "if TIME > tonumber(ARGV[4]) then return reply('late') end\n-- Read here",
        instead: "-- Read here",
    },
    Break {
        rule: "a released value never lives again",
        text: "if f[3] == value then return reply('released') end\nlocal there",
        instead: "local there",
    },
    Break { rule: "`mine` says whose the token is", text: "f[2] == value and '1' or '0')", instead: "'1')" },
    Break {
        rule: "a token is at least the proposal",
        text: "t = math.max(t + 1, proposal)\nredis.call",
        instead: "t = t + 1\nredis.call",
    },
    Break {
        rule: "a proposal of a wrong clock is refused",
        text: "if proposal > math.max(t + 1, TIME + 3600000000) then return reply('clock', int(t)) end",
        instead: "",
    },
    Break {
        rule: "a node in quarantine does not vote",
        text: "if TIME < ends then return 'waiting', ends - TIME end",
        instead: "",
    },
    Break {
        rule: "the marker names the run it was written for",
        text: "if m[1] ~= run_id then return 'run', span end",
        instead: "",
    },
    Break {
        rule: "a quarantine ends although the clock stepped back",
        text: "if ends > TIME + span then",
        instead: "if false then",
    },
    Break {
        rule: "the quarantine begins once for each run",
        text: "if m[1] ~= run_id or not ends then",
        instead: "if true then",
    },
    Break {
        rule: "one token has one owner",
        text: "if t > token or (t == token and f[2] ~= value) then",
        instead: "if t > token then",
    },
    Break {
        rule: "repair never overwrites a foreign value",
        text: "if (there and there ~= value) or (shade and shade ~= value) then",
        instead: "if there and there ~= value then",
    },
    Break {
        rule: "release names the released value",
        text: "if redis.call('HGET', fence, 'x') ~= value then redis.call('HSET', fence, 'x', value) end",
        instead: "",
    },
    Break {
        rule: "release clears the shadow of its own value only",
        text: "if value_of(shadow) == value then redis.call('DEL', shadow) end",
        instead: "redis.call('DEL', shadow)",
    },
    Break {
        rule: "a paused lock is granted to nobody",
        text: "if f[4] and f[4] ~= '' then return reply('paused', f[4]) end",
        instead: "",
    },
    Break {
        rule: "an evicted value never lives again",
        text: "'evicted', int(TIME), 'x', value)",
        instead: "'evicted', int(TIME))",
    },
    Break {
        rule: "an evicted holder's lease keeps everybody else away",
        text: "if there == value then redis.call('DEL', lock) end\nif shade == value then",
        instead: "if there == value then redis.call('DEL', lock, shadow) end\nif shade == value then",
    },
    Break {
        rule: "of two bids the higher stands",
        text: "theirs > priority or",
        instead: "theirs < priority or",
    },
];
