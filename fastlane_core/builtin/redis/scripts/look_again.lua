-- ARGV: key, limit. Lets claims meet up to so many of what waits behind the key; answers how many.
local low, high = range_of(ARGV[2])
local limit = math.min(tonumber(ARGV[3]), HELD_AT_ONCE)
local found = redis.call('ZRANGEBYLEX', BEHIND, low, high, 'LIMIT', 0, limit)
for _, place in ipairs(found) do
  send_back(place)
end
return #found
