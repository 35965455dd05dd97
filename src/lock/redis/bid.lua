-- KEYS bid
-- ARGV host priority ttl_ms
local key, host, priority = KEYS[1], ARGV[1], tonumber(ARGV[2])
local their_priority, their_host = string.match(value_of(key) or '', '^(-?%d+) (.+)$')
local theirs = tonumber(their_priority)
-- One bid at a time, the same on every node: the higher, and of equals the host whose name comes first.
if theirs and their_host ~= host and (theirs > priority or (theirs == priority and their_host < host)) then return reply('outbid') end
redis.call('SET', key, ARGV[2] .. ' ' .. host, 'PX', ARGV[3])
return reply('ok')
