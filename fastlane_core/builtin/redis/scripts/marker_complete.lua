-- KEYS: state. ARGV: (repeated), the new generation, the loss that was made good ('' for any). Answers whether the data
-- is whole now: not when it was lost once more meanwhile.
if redis.call('HEXISTS', KEYS[1], 'generation') == 1 then
  return 1
end
if ARGV[3] ~= '' and redis.call('HGET', KEYS[1], 'loss') ~= ARGV[3] then
  return 0
end
redis.call('HSET', KEYS[1], 'generation', ARGV[2])
redis.call('HDEL', KEYS[1], 'loss')
redis.call('HINCRBY', KEYS[1], 'changes', 1)
redis.call('PUBLISH', KEYS[1], '')
return 1
