-- KEYS lock shadow fence
-- ARGV value
local lock, shadow, fence, value = KEYS[1], KEYS[2], KEYS[3], ARGV[1]
if value_of(lock) == value then redis.call('DEL', lock) end
if value_of(shadow) == value then redis.call('DEL', shadow) end
-- Whether or not a key was there: what is still on its way on another connection must find this (R15).
-- Repeated releases write nothing, so that they wake nobody.
if redis.call('HGET', fence, 'x') ~= value then redis.call('HSET', fence, 'x', value) end
return reply('ok')
