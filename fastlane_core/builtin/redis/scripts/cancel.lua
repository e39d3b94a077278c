-- ARGV: id, placement. Answers 'removed', 'leased' or 'absent'. What is removed cannot be added by a put that began
-- before; a repeated call learns from the refusal that it has removed it itself.
local id, placement = ARGV[2], ARGV[3]
local record = redis.call('HGET', ITEMS, id)
if not record then
  if RETRIED and redis.call('ZSCORE', REFUSED, placement) then
    return 'removed'
  end
  return 'absent'
end
if redis.call('HEXISTS', TOKENS, id) == 1 then
  redis.call('SADD', STOPPING, id)
  return 'leased'
end
local item = parse(record)
redis.call('ZREM', WAITING, id)
redis.call('ZREM', DELAYED, id)
unhold(id, item)
redis.call('SREM', STOPPING, id)
redis.call('HDEL', ITEMS, id)
wake(keys_of(item))
refuse(placement, clock())
return 'removed'
