-- ARGV: the lane, then for each item id, priority, due, placement, task, number of its shard. Answers whether the lane
-- grants, and per item whether it is there now (1), or its placement was refused or its index entry is of another lane (0).
-- Where one server holds everything, KEYS go on with the shards of the index, and entries are made here.
local FIRST_SHARD = 11
local now = clock()
local lane = ARGV[2]
local answers, added = {}, false
for each = 3, #ARGV, 6 do
  local id, priority, due, placement, task, shard = unpack(ARGV, each, each + 5)
  local index = KEYS[FIRST_SHARD + tonumber(shard)]
  if index then
    placement = enter(index, id, placement, lane)
  end
  local there = 1
  if not placement then
    there = 0
  elseif redis.call('HEXISTS', ITEMS, id) == 0 then
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
