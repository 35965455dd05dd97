-- KEYS lock fence
-- ARGV pause ('' ends it)
local lock, fence, pause = KEYS[1], KEYS[2], ARGV[1]
local was = redis.call('HGET', fence, 'p') or ''
if pause == '' then
  if was ~= '' then redis.call('HSET', fence, 'p', '') end
  return reply('ok', was)
end
if was ~= '' then pause = was end
-- Written in any case: standbys track this key.
redis.call('HSET', fence, 'p', pause)
-- The holder tracks the lock key. Written with what it holds and as it expires, for no other end than that he is told.
local there = redis.pcall('GET', lock)
if type(there) == 'string' then redis.call('SET', lock, there, 'KEEPTTL') end
return reply('ok', pause)
