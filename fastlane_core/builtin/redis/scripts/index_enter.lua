-- KEYS: entries, state. ARGV: (repeated), then id and entry of each. Answers the entries that stand: older ones stay.
local answers = {}
for each = 2, #ARGV, 2 do
  redis.call('HSETNX', KEYS[1], ARGV[each], ARGV[each + 1])
  answers[#answers + 1] = redis.call('HGET', KEYS[1], ARGV[each])
end
return answers
