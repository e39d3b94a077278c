-- ARGV: capacity, limit, seconds, token of this call, the most that all lanes may hold ('' for any number). Answers the
-- lane's changes, whether there may be more to give, then id, record, token and place of each lease. A lease's token
-- tells the call, how it was got, and its number: granted (g), adopted after it ran out (a), or was handed over (h).
local capacity, limit, seconds, call = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
local FIRST = 3
local answer = {tonumber(redis.call('HGET', STATE, 'changes') or 0), 0}
if redis.call('HEXISTS', STATE, 'generation') == 0 then
  return answer
end

local function tell(id, record, token)
  local place = redis.call('HGET', PLACED, id)
  answer[#answer + 1] = {id, record, token, place and 1 or 0, place or ''}
end

if RETRIED then
  -- What the call got whose answer was lost.
  local held = redis.call('HGETALL', TOKENS)
  for each = 1, #held, 2 do
    if string.sub(held[each + 1], 1, #call) == call then
      tell(held[each], redis.call('HGET', ITEMS, held[each]), held[each + 1])
    end
  end
  if #answer >= FIRST then
    answer[2] = 1
    return answer
  end
end

local now = clock()
promote(now, limit)

local function lease(id, record, kind)
  local token = call .. kind .. #answer
  redis.call('ZADD', LEASES, now + seconds, id)
  redis.call('HSET', TOKENS, id, token)
  tell(id, record, token)
end

if limit > 0 then
  local found = redis.call('ZRANGEBYSCORE', LEASES, '-inf', now, 'WITHSCORES', 'LIMIT', 0, limit)
  for each = 1, #found, 2 do
    local id = found[each]
    lease(id, redis.call('HGET', ITEMS, id), tonumber(found[each + 1]) == HANDED_OVER_AT and 'h' or 'a')
  end
end
local room = math.min(limit - (#answer - FIRST + 1), capacity - redis.call('ZCARD', LEASES))
if ARGV[6] ~= '' then
  -- Every lease counts once under its task.
  room = math.min(room, tonumber(ARGV[6]) - redis.call('ZLEXCOUNT', COUNTED, '[task:', '(task;'))
end
local held = 0
while room > 0 and held < HELD_AT_ONCE do
  local found = redis.call('ZPOPMIN', WAITING, room)
  if #found == 0 then
    break
  end
  for each = 1, #found, 2 do
    local id = found[each]
    local record = redis.call('HGET', ITEMS, id)
    local item = parse(record)
    local keys = keys_of(item)
    local index = blocking(keys)
    if index then
      hold(id, item.score, keys[index])
      held = held + 1
      -- It was there to use the room under the wider ones; another may.
      wake(keys, index + 1)
    else
      count(id, keys)
      lease(id, record, 'g')
      room = room - 1
    end
  end
end
if held > 0 then
  answer[1] = tonumber(redis.call('HGET', STATE, 'changes') or 0)
  answer[2] = room > 0 and held >= HELD_AT_ONCE and 1 or 0
end
return answer
