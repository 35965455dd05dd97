-- KEYS marker
-- ARGV run_id nodes quarantine_us
local marker, run_id, nodes, span = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])
local m = redis.call('HMGET', marker, 'run_id', 'until', 'n', 'q')
local ends, before = tonumber(m[2]), tonumber(m[4]) or 0
if m[1] ~= run_id or not ends then
  -- Once per run: connections that come and go must not begin the wait anew (R19).
  ends = TIME + span
  redis.call('HSET', marker, 'run_id', run_id, 'until', int(ends), 'n', nodes, 'q', int(span))
  return reply('adopted', int(ends))
end
if m[3] ~= nodes then return reply('denied', m[3] or '') end
if before < span then
  -- A host with longer leases than the adopter's joins: the same start, the longer wait (R2c).
  ends = ends + span - before
  redis.call('HSET', marker, 'until', int(ends), 'q', int(span))
end
return reply('kept', int(ends))
