-- ARGV: id and placement of each index entry. Answers for each whether it is here (1); if it is not (0), its placement
-- is refused from now on.
local now = clock()
local answers = {}
for each = 2, #ARGV, 2 do
  local here = redis.call('HEXISTS', ITEMS, ARGV[each])
  if here == 0 then
    refuse(ARGV[each + 1], now)
  end
  answers[#answers + 1] = here
end
return answers
