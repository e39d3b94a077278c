-- Answers waiting, delayed, leased, when the next delayed item is due ('' for never), leases by place, how
-- many are held, and how many leases have run out.
local now = clock()
local due = redis.call('ZCOUNT', DELAYED, '-inf', now)
local following = redis.call('ZRANGEBYSCORE', DELAYED, '(' .. string.format('%.17g', now), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
return {
  redis.call('ZCARD', WAITING) + due,
  redis.call('ZCARD', DELAYED) - due,
  redis.call('ZCARD', LEASES),
  following[2] or '',
  redis.call('HGETALL', PLACES),
  redis.call('ZCARD', HELD),
  redis.call('ZCOUNT', LEASES, '-inf', now),
}
