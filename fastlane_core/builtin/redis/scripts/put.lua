-- ARGV: for each item id, priority, due, placement, task. Answers whether the lane grants, and per item
-- whether it is there now (1) or its placement was refused (0).
local now = clock()
local answers, added = {}, false
for each = 2, #ARGV, 5 do
  local id, priority, due, placement, task = unpack(ARGV, each, each + 4)
  local there = 1
  if redis.call('HEXISTS', ITEMS, id) == 0 then
    if redis.call('ZSCORE', REFUSED, placement) then
      there = 0
    else
      local score = next_score(priority)
      redis.call('HSET', ITEMS, id, score .. ' ' .. due .. ' ' .. placement .. ' ' .. task)
      enqueue(id, score, due, now)
      added = true
    end
  end
  answers[#answers + 1] = there
end
if added then
  touch()
end
return {redis.call('HEXISTS', STATE, 'generation'), answers}
