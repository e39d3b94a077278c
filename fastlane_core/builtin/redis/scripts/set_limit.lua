-- ARGV: key, capacity ('' for none). Answers how many of what waits behind the key are to be looked at again.
local key, capacity = ARGV[2], ARGV[3]
if capacity == '' then
  redis.call('HDEL', CAPACITIES, key)
else
  redis.call('HSET', CAPACITIES, key, capacity)
end
local held = redis.call('ZLEXCOUNT', BEHIND, range_of(key))
return math.min(held, capacity ~= '' and tonumber(capacity) or held)
