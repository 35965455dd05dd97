-- Stands in front of every script. Redis 6.2, 7.x, Valkey 8 and 9.

local function int(n) return string.format('%.0f', n) end -- tostring gives 1.7e+15
local clock = redis.call('TIME')
local TIME = tonumber(clock[1]) * 1000000 + tonumber(clock[2])

local function reply(tag, ...) return {int(TIME), tag, ...} end

-- A key of another type belongs to another library. It excludes us, so it must read as a value and not as an error.
local function value_of(key)
  local value = redis.pcall('GET', key)
  if type(value) == 'table' then return '(not a string)' end
  return value
end

-- Why this node does not vote now, with the µs until it may; nothing when it votes.
local function abstains(marker, run_id, nodes, span)
  local m = redis.call('HMGET', marker, 'run_id', 'until', 'n', 'q')
  span = math.max(tonumber(span), tonumber(m[4]) or 0)
  if not m[1] or not tonumber(m[2]) then return 'absent', span end
  if m[1] ~= run_id then return 'run', span end
  if m[3] ~= nodes then return 'count', span end
  local ends = tonumber(m[2])
  if ends > TIME + span then -- written before the node's clock stepped back (R18)
    ends = TIME + span
    redis.call('HSET', marker, 'until', int(ends))
  end
  if TIME < ends then return 'waiting', ends - TIME end
end

-- Who has the lock: value, largest PTTL of key and shadow (-1: one of them never expires), token, 1 if a keeperd, its host and pid.
local function held(tag, lock, shadow, fence)
  local value, shade = value_of(lock), value_of(shadow)
  local a, b = redis.call('PTTL', lock), redis.call('PTTL', shadow)
  local left = (a == -1 or b == -1) and -1 or math.max(a, b)
  local owner = value or shade
  local f = redis.call('HMGET', fence, 't', 'l', 'host', 'pid')
  local known = owner == f[2]
  return reply(tag, owner, int(left), f[1] or '0', owner == shade and '1' or '0', known and f[3] or '', known and f[4] or '')
end
