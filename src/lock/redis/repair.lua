-- KEYS lock shadow fence
-- ARGV value ttl_ms token deadline_us host pid
local lock, shadow, fence = KEYS[1], KEYS[2], KEYS[3]
local value, ttl, token = ARGV[1], ARGV[2], tonumber(ARGV[3])
if TIME > tonumber(ARGV[4]) then return reply('late') end
local f = redis.call('HMGET', fence, 't', 'x', 'l')
if f[2] == value then return reply('released') end
local there, shade = value_of(lock), value_of(shadow)
if (there and there ~= value) or (shade and shade ~= value) then return held('foreign', lock, shadow, fence) end
redis.call('SET', lock, value, 'PX', ttl)
redis.call('SET', shadow, value, 'PX', ttl)
if (tonumber(f[1]) or 0) < token then redis.call('HSET', fence, 't', int(token), 'o', value) end
if f[3] ~= value then redis.call('HSET', fence, 'l', value, 'host', ARGV[5], 'pid', ARGV[6], 'since', int(TIME), 'ttl', ttl) end
redis.call('GET', lock) -- tracking, as in extend
return reply('ok')
