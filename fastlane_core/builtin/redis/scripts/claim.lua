-- ARGV: capacity, limit, seconds, token of this call. Answers the lane's changes, then id, record, token and place of
-- each lease. A lease's token tells the call, whether it was adopted, and its number.
local capacity, limit, seconds, call = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
local answer = {tonumber(redis.call('HGET', STATE, 'changes') or 0)}
if redis.call('HEXISTS', STATE, 'generation') == 0 then
  return answer
end

local function tell(id, token)
  local place = redis.call('HGET', PLACED, id)
  answer[#answer + 1] = {id, redis.call('HGET', ITEMS, id), token, place and 1 or 0, place or ''}
end

if RETRIED then
  -- What the call got whose answer was lost.
  local held = redis.call('HGETALL', TOKENS)
  for each = 1, #held, 2 do
    if string.sub(held[each + 1], 1, #call) == call then
      tell(held[each], held[each + 1])
    end
  end
  if #answer > 1 then
    return answer
  end
end

local now = clock()
promote(now, limit)

local function lease(id, kind)
  local token = call .. kind .. #answer
  redis.call('ZADD', LEASES, now + seconds, id)
  redis.call('HSET', TOKENS, id, token)
  tell(id, token)
end

if limit > 0 then
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', LEASES, '-inf', now, 'LIMIT', 0, limit)) do
    lease(id, 'a')
  end
end
local room = math.min(limit - (#answer - 1), capacity - redis.call('ZCARD', LEASES))
if room > 0 then
  local granted = redis.call('ZPOPMIN', WAITING, room)
  for each = 1, #granted, 2 do
    lease(granted[each], 'g')
  end
end
return answer
