-- ARGV: ids. Answers for each whether it waits or is leased here.
local answers = {}
for each = 2, #ARGV do
  answers[#answers + 1] = redis.call('HEXISTS', ITEMS, ARGV[each])
end
return answers
