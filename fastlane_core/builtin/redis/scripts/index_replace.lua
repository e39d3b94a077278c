-- KEYS: entries, state. ARGV: (repeated), then id, the entry expected and the one to put in its place ('' for none).
for each = 2, #ARGV, 3 do
  if redis.call('HGET', KEYS[1], ARGV[each]) == ARGV[each + 1] then
    if ARGV[each + 2] == '' then
      redis.call('HDEL', KEYS[1], ARGV[each])
    else
      redis.call('HSET', KEYS[1], ARGV[each], ARGV[each + 2])
    end
  end
end
return 1
