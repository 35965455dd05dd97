-- KEYS fence marker
-- ARGV value token deadline_us run_id nodes quarantine_us
local fence, marker = KEYS[1], KEYS[2]
local value, token = ARGV[1], tonumber(ARGV[2])
if TIME > tonumber(ARGV[3]) then return reply('late') end
-- A token accepted by a node that has just lost its own proves nothing (R13).
local why, left = abstains(marker, ARGV[4], ARGV[5], ARGV[6])
if why then return reply('quarantined', why, int(left)) end
local f = redis.call('HMGET', fence, 't', 'o', 'x')
local t = tonumber(f[1]) or 0
if f[3] == value then return reply('released') end
if t > token or (t == token and f[2] ~= value) then return reply('outrun', int(t)) end
-- Token and owner only: host, pid and l describe the lease, which may be somebody else's here (R5).
if t < token then redis.call('HSET', fence, 't', int(token), 'o', value) end
return reply('ok')
