-- ARGV: limit. Answers id and record of the items that would be granted next.
promote(clock(), tonumber(ARGV[2]))
local ids = redis.call('ZRANGE', WAITING, 0, tonumber(ARGV[2]) - 1)
local answer = {}
for each, id in ipairs(ids) do
  answer[each] = {id, redis.call('HGET', ITEMS, id)}
end
return answer
