-- ARGV: id, token. Answers the placement of what was removed, '' when it is not there, false when the lease is lost.
local id = ARGV[2]
local record = redis.call('HGET', ITEMS, id)
if not record then
  return ''
end
if not holds(id, ARGV[3]) then
  return false
end
local _, _, placement = parse(record)
free(id)
redis.call('SREM', STOPPING, id)
redis.call('HDEL', ITEMS, id)
touch()
return placement
