-- KEYS lock shadow fence marker
-- ARGV value ttl_ms proposal deadline_us run_id nodes quarantine_us host pid
local lock, shadow, fence, marker = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local value, ttl, proposal = ARGV[1], ARGV[2], tonumber(ARGV[3])
if TIME > tonumber(ARGV[4]) then return reply('late') end
-- Read here and not on connection: FLUSHALL takes marker, lock and fence from under a standing connection (R1).
local why, left = abstains(marker, ARGV[5], ARGV[6], ARGV[7])
if why then return reply('quarantined', why, int(left)) end
local f = redis.call('HMGET', fence, 't', 'o', 'x', 'p')
local t = tonumber(f[1]) or 0
if f[3] == value then return reply('released') end
local there, shade = value_of(lock), value_of(shadow)
if there == value then
  if not shade then redis.call('SET', shadow, value, 'PX', math.max(1, redis.call('PTTL', lock))) end
  return reply('mine', int(t), f[2] == value and '1' or '0')
end
if there or (shade and shade ~= value) then return held('held', lock, shadow, fence) end
if f[4] and f[4] ~= '' then return reply('paused', f[4]) end
if proposal > math.max(t + 1, TIME + 3600000000) then return reply('clock', int(t)) end
-- Beyond 2^53 the next owner would get the same number.
if math.max(t + 1, proposal) > 9007199254740991 then return reply('clock', int(t)) end
t = math.max(t + 1, proposal)
redis.call('SET', lock, value, 'PX', ttl)
redis.call('SET', shadow, value, 'PX', ttl)
redis.call('HSET', fence, 't', int(t), 'o', value, 'l', value, 'host', ARGV[8], 'pid', ARGV[9], 'since', int(TIME), 'ttl', ttl)
return reply('ok', int(t))
