-- KEYS lock shadow fence marker bid
-- ARGV value ttl_ms(0: classify only) token deadline_us quarantine_us host pid
local lock, shadow, fence, marker = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local value, ttl = ARGV[1], tonumber(ARGV[2])
local f = redis.call('HMGET', fence, 't', 'x', 'l', 'p')
local there, shade = value_of(lock), value_of(shadow)
local released = f[2] == value

if there == value and not released then
  if ttl > 0 then
    if TIME > tonumber(ARGV[4]) then return reply('late') end
    -- PEXPIRE and not SET: a node that is out of memory still extends.
    redis.call('PEXPIRE', lock, ttl)
    if shade == value then redis.call('PEXPIRE', shadow, ttl) else redis.call('SET', shadow, value, 'PX', ttl) end
    local token = tonumber(ARGV[3])
    if (tonumber(f[1]) or 0) < token then redis.call('HSET', fence, 't', int(token), 'o', value) end
    if f[3] ~= value then redis.call('HSET', fence, 'l', value, 'host', ARGV[6], 'pid', ARGV[7], 'since', int(TIME), 'ttl', ARGV[2]) end
  end
  -- Another host may ask for this lock, or an operator that nobody has it. The holder hears of it here, so that it costs no trip of its own.
  local bid = ttl > 0 and value_of(KEYS[5]) or ''
  redis.call('GET', lock) -- the write ended our tracking of the key; this read, the last access, begins it anew (R21)
  return reply('ok', bid, f[4] or '')
end

if there and there ~= value then return held('foreign', lock, shadow, fence) end
-- Lock absent, shadow somebody else's: he was granted this node and his key was deleted by hand. His lease lives, so this is no mere `gone`.
if shade and shade ~= value then return held('foreign', lock, shadow, fence) end
redis.call('GET', lock)
-- Also when `unlock --force` has named us released: what is left of key or shadow still keeps everybody else away (R25).
if there == value or shade == value then return reply('kept') end
local ends = redis.call('HGET', marker, 'until')
-- Without a marker nobody is granted this node before somebody writes one and waits: unless waiting is turned off.
if not ends and tonumber(ARGV[5]) > 0 then return reply('empty', 'absent') end
if ends and TIME < (tonumber(ends) or 0) then return reply('empty', 'waiting') end
return reply('gone')
