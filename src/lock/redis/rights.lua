-- KEYS marker
-- What the scripts call and this user may not; nothing where the server cannot say (before Redis 7).
local missing = {}
if redis.acl_check_cmd then
  for command in string.gmatch('time get set del pexpire pttl hget hset hmget', '%a+') do
    local allowed
    if command == 'time' then allowed = redis.acl_check_cmd(command)
    elseif command == 'set' or command == 'pexpire' or command == 'hget' or command == 'hmget' then
      allowed = redis.acl_check_cmd(command, KEYS[1], '1')
    elseif command == 'hset' then allowed = redis.acl_check_cmd(command, KEYS[1], 'f', 'v')
    else allowed = redis.acl_check_cmd(command, KEYS[1]) end
    if not allowed then missing[#missing + 1] = command end
  end
end
return table.concat(missing, ', ')
