-- ARGV: id, token, delay. Answers 1, or 0 when the lease is lost.
local id = ARGV[2]
local record = redis.call('HGET', ITEMS, id)
if not record then
  return 0
end
if redis.call('HEXISTS', TOKENS, id) == 0 then
  return 1
end
if not holds(id, ARGV[3]) then
  return 0
end
local now = clock()
local item = parse(record)
item.due = string.format('%.17g', now + tonumber(ARGV[4]))
write(id, item)
enqueue(id, item.score, item.due, now)
free(id, item)
touch()
return 1
