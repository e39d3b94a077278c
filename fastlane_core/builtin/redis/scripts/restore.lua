-- ARGV: seconds; then for each lease id, priority, due, placement, limits, task, token, whether it has a place,
-- place. Answers like put.
local now = clock()
local expires = now + tonumber(ARGV[2])
local answers, added = {}, false
for each = 3, #ARGV, 9 do
  local id, priority, due, placement, limits, task, token, has_place, place = unpack(ARGV, each, each + 8)
  local there = 1
  if redis.call('HEXISTS', ITEMS, id) == 0 then
    if redis.call('ZSCORE', REFUSED, placement) then
      there = 0
    else
      local item = {due = due, placement = placement, priority = priority, limits = limits, task = task}
      item.score = next_score(priority, due, now)
      write(id, item)
      count(id, keys_of(item))
      redis.call('ZADD', LEASES, expires, id)
      redis.call('HSET', TOKENS, id, token)
      if has_place == '1' then
        take_place(id, place)
      end
      added = true
    end
  end
  answers[#answers + 1] = there
end
if added then
  touch()
end
return {redis.call('HEXISTS', STATE, 'generation'), answers}
