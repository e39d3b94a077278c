-- Put in front of every step of a lane. KEYS are the lane's, in the order of keys.py; ARGV[1] tells a repeated call.
--
-- waiting   sorted set of ids by score: what may be granted, unless a claim finds that it is to be held
-- delayed   sorted set of ids by the time they are due
-- leases    sorted set of ids by the time their lease runs out
-- items     hash: id -> "score due placement priority limits task"; limits are "key=capacity,...", or "-" for none
-- tokens    hash: id -> token of its lease
-- placed    hash: id -> place that its lease was assigned
-- places    hash: place -> leases there
-- stopping  set of ids that were asked to stop
-- refused   sorted set of placements that must not be added any more, by the time to forget them
-- held      sorted set of ids by score: what waits behind a key that is at its capacity
-- state     hash: tick, changes, generation; also the name of the channel that tells of changes
--
-- Of all lanes, where one server holds everything; else of this lane, and of what it holds:
-- counted     sorted set of "key id" for each key of each lease, by name
-- behind      sorted set of "key score state id" for what is held, by name; state is the key of its lane's
-- capacities  hash: key -> capacity that was set
--
-- A score is a time in microseconds, less what the priority is worth. Keys, tasks and names of lanes hold no space.
local WAITING, DELAYED, LEASES, ITEMS, TOKENS, PLACED, PLACES, STOPPING, REFUSED, HELD, STATE,
  COUNTED, BEHIND, CAPACITIES = unpack(KEYS)
-- KEYS of some steps go on from here.
local NEXT_KEY = 15
local RETRIED = ARGV[1] == '1'
-- As in contracts/queue.py.
local AGEING_SECONDS = 600
local LATEST = 9e9
local REFUSED_SECONDS = 120
local PLACEMENT_LENGTH = 16
-- When a lease that was handed over ran out.
local HANDED_OVER_AT = 0
-- Items that one step holds, or sends back.
local HELD_AT_ONCE = 1000

local function clock()
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1000000
end

local function touch(state)
  redis.call('HINCRBY', state or STATE, 'changes', 1)
  redis.call('PUBLISH', state or STATE, '')
end

local function parse(record)
  local score, due, placement, priority, limits, task =
    string.match(record, '^(%S+) (%S+) (%S+) (%S+) (%S+) (.*)$')
  return {score = score, due = due, placement = placement, priority = priority, limits = limits, task = task}
end

local function write(id, item)
  redis.call('HSET', ITEMS, id, table.concat(
    {item.score, item.due, item.placement, item.priority, item.limits, item.task}, ' '))
end

-- Ticks are microseconds, and each is given once.
local function next_score(priority, due, now)
  local base = math.min(tonumber(due), LATEST) * 1000000
  if tonumber(due) <= now then
    base = math.max(math.floor(now * 1000000), tonumber(redis.call('HGET', STATE, 'tick') or 0) + 1)
    redis.call('HSET', STATE, 'tick', string.format('%.0f', base))
  end
  return string.format('%.0f', base - tonumber(priority) * AGEING_SECONDS * 1000000)
end

local function enqueue(id, score, due, now)
  if tonumber(due) <= now then
    redis.call('ZADD', WAITING, score, id)
  else
    redis.call('ZADD', DELAYED, due, id)
  end
end

-- Makes delayed items that are due claimable, a bounded number at a time, until so many can be claimed.
local function promote(now, wanted)
  repeat
    local due = redis.call('ZRANGEBYSCORE', DELAYED, '-inf', now, 'LIMIT', 0, 1000)
    if #due == 0 then
      return
    end
    local scored = {}
    for index, record in ipairs(redis.call('HMGET', ITEMS, unpack(due))) do
      scored[2 * index - 1] = parse(record).score
      scored[2 * index] = due[index]
    end
    redis.call('ZADD', WAITING, unpack(scored))
    redis.call('ZREM', DELAYED, unpack(due))
  until redis.call('ZCARD', WAITING) >= wanted
end

local function holds(id, token)
  return redis.call('HGET', TOKENS, id) == token
end

local function leave_place(id)
  local place = redis.call('HGET', PLACED, id)
  if place then
    redis.call('HDEL', PLACED, id)
    if redis.call('HINCRBY', PLACES, place, -1) <= 0 then
      redis.call('HDEL', PLACES, place)
    end
  end
end

local function take_place(id, place)
  redis.call('HSET', PLACED, id, place)
  redis.call('HINCRBY', PLACES, place, 1)
end

-- The keys under which an item counts, narrowest first, each with the strictest capacity that holds for it.
local function keys_of(item)
  local keys, task = {}, 'task:' .. item.task
  local told = false
  if item.limits ~= '-' then
    for key, capacity in string.gmatch(item.limits, '([^=,]+)=(%d+)') do
      keys[#keys + 1] = {name = key, capacity = tonumber(capacity)}
      told = told or key == task
    end
  end
  if not told then
    keys[#keys + 1] = {name = task, capacity = math.huge}
  end
  for _, key in ipairs(keys) do
    local set = redis.call('HGET', CAPACITIES, key.name)
    if set then
      key.capacity = math.min(key.capacity, tonumber(set))
    end
  end
  return keys
end

-- What begins with that name, in a sorted set by name.
local function range_of(name)
  return '[' .. name .. ' ', '(' .. name .. '!'
end

local function leased(key)
  return redis.call('ZLEXCOUNT', COUNTED, range_of(key.name))
end

-- The place among its keys of the narrowest one without room for one more, `taken` included.
local function blocking(keys, taken)
  for index, key in ipairs(keys) do
    if key.capacity < math.huge and leased(key) + (taken and taken[key.name] or 0) >= key.capacity then
      return index
    end
  end
end

local function count(id, keys)
  for _, key in ipairs(keys) do
    redis.call('ZADD', COUNTED, 0, key.name .. ' ' .. id)
  end
end

local function place_behind(key, id, score)
  return key.name .. ' ' .. string.format('%020.0f', tonumber(score)) .. ' ' .. STATE .. ' ' .. id
end

local function hold(id, score, key)
  redis.call('ZADD', HELD, score, id)
  redis.call('ZADD', BEHIND, 0, place_behind(key, id, score))
end

local function unhold(id, item)
  if redis.call('ZREM', HELD, id) == 1 then
    for _, key in ipairs(keys_of(item)) do
      redis.call('ZREM', BEHIND, place_behind(key, id, item.score))
    end
    return true
  end
  return false
end

-- Lets claims meet again what waits behind a key, here or in another lane.
local function send_back(place)
  local score, state, id = string.match(place, '^%S+ (%S+) (%S+) (.*)$')
  local lane = string.sub(state, 1, -#'state' - 1)
  redis.call('ZREM', BEHIND, place)
  redis.call('ZREM', lane .. 'held', id)
  redis.call('ZADD', lane .. 'waiting', score, id)
  touch(state)
end

-- Somebody may use what an item does not use any more of its keys, or will not use: the first behind each with room.
local function wake(keys, first)
  for index = first or 1, #keys do
    local key = keys[index]
    local low, high = range_of(key.name)
    local place = redis.call('ZRANGEBYLEX', BEHIND, low, high, 'LIMIT', 0, 1)[1]
    if place then
      local state, id = string.match(place, '^%S+ %S+ (%S+) (.*)$')
      local record = redis.call('HGET', string.sub(state, 1, -#'state' - 1) .. 'items', id)
      local capacity = math.huge
      for _, its in ipairs(keys_of(parse(record))) do
        if its.name == key.name then
          capacity = its.capacity
        end
      end
      if leased(key) < capacity then
        send_back(place)
      end
    end
  end
end

local function free(id, item)
  redis.call('ZREM', LEASES, id)
  redis.call('HDEL', TOKENS, id)
  leave_place(id)
  local keys = keys_of(item)
  for _, key in ipairs(keys) do
    redis.call('ZREM', COUNTED, key.name .. ' ' .. id)
  end
  wake(keys)
end

-- The placement by which an execution may be added to this lane, according to its index entry, which is made if there is
-- none; nothing if the entry is of another lane.
local function enter(index, id, placement, lane)
  redis.call('HSETNX', index, id, placement .. lane)
  local entry = redis.call('HGET', index, id)
  if string.sub(entry, PLACEMENT_LENGTH + 1) == lane then
    return string.sub(entry, 1, PLACEMENT_LENGTH)
  end
end

-- Whoever wants to add this placement later is refused.
local function refuse(placement, now)
  redis.call('ZREMRANGEBYSCORE', REFUSED, '-inf', now)
  redis.call('ZADD', REFUSED, now + REFUSED_SECONDS, placement)
  redis.call('EXPIRE', REFUSED, REFUSED_SECONDS)
end

