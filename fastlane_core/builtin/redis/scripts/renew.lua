-- ARGV: seconds, then id and token of each lease. Answers for each: lost (0), renewed (1), renewed and to stop (2).
local expires = clock() + tonumber(ARGV[2])
local answers = {}
for each = 3, #ARGV, 2 do
  local id = ARGV[each]
  local found = 0
  if holds(id, ARGV[each + 1]) then
    redis.call('ZADD', LEASES, expires, id)
    found = 1 + redis.call('SISMEMBER', STOPPING, id)
  end
  answers[#answers + 1] = found
end
return answers
