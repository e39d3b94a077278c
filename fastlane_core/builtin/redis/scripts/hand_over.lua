-- ARGV: id and token of each lease; those that are held run out now.
local changed = false
for each = 2, #ARGV, 2 do
  if holds(ARGV[each], ARGV[each + 1]) then
    redis.call('ZADD', LEASES, HANDED_OVER_AT, ARGV[each])
    changed = true
  end
end
if changed then
  touch()
end
return 1
