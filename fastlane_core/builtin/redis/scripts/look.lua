-- Answers the lane's changes, and in how many seconds something becomes claimable by the passing of time ('' for never).
local changes = tonumber(redis.call('HGET', STATE, 'changes') or 0)
if redis.call('HEXISTS', STATE, 'generation') == 0 then
  return {changes, ''}
end
local first
for _, key in ipairs({DELAYED, LEASES}) do
  local found = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')[2]
  if found and (not first or tonumber(found) < first) then
    first = tonumber(found)
  end
end
return {changes, first and string.format('%.6f', first - clock()) or ''}
