-- Put in front of every step of a lane. KEYS are the lane's, in the order of keys.py; ARGV[1] tells a repeated call.
--
-- waiting   sorted set of ids by score: priority first, then order of arrival
-- delayed   sorted set of ids by the time they are due
-- leases    sorted set of ids by the time their lease runs out
-- items     hash: id -> "score due placement task"
-- tokens    hash: id -> token of its lease
-- placed    hash: id -> place that its lease was assigned
-- places    hash: place -> leases there
-- stopping  set of ids that were asked to stop
-- refused   sorted set of placements that must not be added any more, by the time to forget them
-- state     hash: sequence, changes, generation; also the name of the channel that tells of changes
local WAITING, DELAYED, LEASES, ITEMS, TOKENS, PLACED, PLACES, STOPPING, REFUSED, STATE = unpack(KEYS)
local RETRIED = ARGV[1] == '1'
local HIGHEST_PRIORITY = 9
local SEQUENCES = 2 ^ 49
local REFUSED_SECONDS = 120
local PLACEMENT_LENGTH = 16

local function clock()
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1000000
end

local function touch()
  redis.call('HINCRBY', STATE, 'changes', 1)
  redis.call('PUBLISH', STATE, '')
end

local function parse(record)
  local score, due, placement, task = string.match(record, '^(%S+) (%S+) (%S+) (.*)$')
  return score, due, placement, task
end

local function next_score(priority)
  local sequence = redis.call('HINCRBY', STATE, 'sequence', 1)
  return string.format('%.0f', (HIGHEST_PRIORITY - tonumber(priority)) * SEQUENCES + sequence)
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
      scored[2 * index - 1] = parse(record)
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

local function free(id)
  redis.call('ZREM', LEASES, id)
  redis.call('HDEL', TOKENS, id)
  leave_place(id)
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

