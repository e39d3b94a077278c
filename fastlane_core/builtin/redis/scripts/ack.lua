-- ARGV: id, token, the lane. Answers the placement of what was removed, '' when it is not there, false when the lease is
-- lost. Where one server holds everything, KEYS end with the shard of the index, and the entry is removed here.
local INDEX = KEYS[NEXT_KEY]
local id, lane = ARGV[2], ARGV[4]
local entry = INDEX and redis.call('HGET', INDEX, id)
local record = redis.call('HGET', ITEMS, id)
if not record then
  -- An earlier call has removed it. An entry that is left leads nowhere, and no put that has seen it shall use it.
  if entry and string.sub(entry, PLACEMENT_LENGTH + 1) == lane then
    refuse(string.sub(entry, 1, PLACEMENT_LENGTH), clock())
    redis.call('HDEL', INDEX, id)
  end
  return ''
end
if not holds(id, ARGV[3]) then
  return false
end
local item = parse(record)
redis.call('SREM', STOPPING, id)
redis.call('HDEL', ITEMS, id)
free(id, item)
if entry == item.placement .. lane then
  redis.call('HDEL', INDEX, id)
end
touch()
return item.placement
