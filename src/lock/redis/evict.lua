-- KEYS lock shadow fence
-- ARGV value lease_ms
local lock, shadow, fence, value = KEYS[1], KEYS[2], KEYS[3], ARGV[1]
local there, shade = value_of(lock), value_of(shadow)
if there ~= value and shade ~= value then return reply('changed', there or shade or '') end
local left, f = redis.call('PTTL', lock), redis.call('HMGET', fence, 'l', 'ttl')
-- A keeperd's lease may live on under a key that never expires: it was granted with an end. What does not look like its value is none.
local lease = #value == 32 and not value:find('[^0-9a-f]') and tonumber(ARGV[2]) or 0
if f[1] == value then lease = tonumber(f[2]) or tonumber(ARGV[2]) end
if there == value then redis.call('DEL', lock) end
if shade == value then
  if redis.call('PTTL', shadow) == -1 then redis.call('PEXPIRE', shadow, int(lease > 0 and lease or tonumber(ARGV[2]))) end
elseif not shade and there == value then
  if left < 0 then left = lease end
  if left > 0 then redis.call('SET', shadow, value, 'PX', int(left)) end
end
-- Token and owner stay (R25), and so does the shadow: whoever holds it hears that it is gone, and nobody else is granted this node before the
-- lease he may believe in is over.
redis.call('HSET', fence, 'evicted', int(TIME), 'x', value)
return reply('ok', int(math.max(0, redis.call('PTTL', shadow))))
