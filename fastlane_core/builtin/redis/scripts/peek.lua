-- ARGV: limit, whether to make claimable what has become due. Answers id and record of the items that would be granted
-- next, then of some that are held.
local limit = tonumber(ARGV[2])
if ARGV[3] == '1' then
  promote(clock(), limit)
end
local answer = {}
for _, ids in ipairs({WAITING, HELD}) do
  if #answer < limit then
    for _, id in ipairs(redis.call('ZRANGE', ids, 0, limit - #answer - 1)) do
      answer[#answer + 1] = {id, redis.call('HGET', ITEMS, id)}
    end
  end
end
return answer
