-- ARGV: the lane, then for each item id, priority, due, placement, limits, task, number of its shard. Answers whether the
-- lane grants, and per item whether it is there now (1), or its placement was refused or its index entry is of another
-- lane (0). Where one server holds everything, KEYS go on with the shards of the index, and entries are made here.
local now = clock()
local lane = ARGV[2]
local answers, changed = {}, false
-- Items of this call that are to be granted before others of the same key.
local taken = {}

local function add(id, item)
  item.score = next_score(item.priority, item.due, now)
  write(id, item)
  if tonumber(item.due) > now then
    redis.call('ZADD', DELAYED, item.due, id)
    return
  end
  local keys = keys_of(item)
  local index = blocking(keys, taken)
  if index then
    hold(id, item.score, keys[index])
    return
  end
  redis.call('ZADD', WAITING, item.score, id)
  for _, key in ipairs(keys) do
    if key.capacity < math.huge then
      taken[key.name] = (taken[key.name] or 0) + 1
    end
  end
end

local function update(id, record, limits)
  local item = parse(record)
  if item.limits == limits or redis.call('HEXISTS', TOKENS, id) == 1 then
    return false
  end
  local was_held = unhold(id, item)
  item.limits = limits
  write(id, item)
  if was_held then
    redis.call('ZADD', WAITING, item.score, id)
  end
  return was_held
end

for each = 3, #ARGV, 7 do
  local id, priority, due, placement, limits, task, shard = unpack(ARGV, each, each + 6)
  local index = KEYS[NEXT_KEY + tonumber(shard)]
  if index then
    placement = enter(index, id, placement, lane)
  end
  local there = 1
  local record = redis.call('HGET', ITEMS, id)
  if not placement then
    there = 0
  elseif record then
    changed = update(id, record, limits) or changed
  elseif redis.call('ZSCORE', REFUSED, placement) then
    there = 0
  else
    add(id, {due = due, placement = placement, priority = priority, limits = limits, task = task})
    changed = true
  end
  answers[#answers + 1] = there
end
if changed then
  touch()
end
return {redis.call('HEXISTS', STATE, 'generation'), answers}
