-- KEYS: state. ARGV: (repeated), a random text. Answers '' if the data is whole; else a text that stays the same until
-- it is lost once more.
if redis.call('HEXISTS', KEYS[1], 'generation') == 1 then
  return ''
end
redis.call('HSETNX', KEYS[1], 'loss', ARGV[2])
return redis.call('HGET', KEYS[1], 'loss')
