-- KEYS: lanes, state. ARGV: (repeated), a lane, whether it is ready to grant. Answers 1 when it is registered, 2 when
-- it was not before; 0 for one that is new to a whole queue and not ready: it has to be made ready first.
if ARGV[3] == '0' and redis.call('HEXISTS', KEYS[2], 'generation') == 1
  and redis.call('SISMEMBER', KEYS[1], ARGV[2]) == 0 then
  return 0
end
return 1 + redis.call('SADD', KEYS[1], ARGV[2])
