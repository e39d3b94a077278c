-- ARGV: id, token, then place and capacity of each offer. Answers -1 when the lease is lost, 0 when no place has room,
-- else the number of the offer.
local id, token = ARGV[2], ARGV[3]
if not holds(id, token) then
  return -1
end
local place = redis.call('HGET', PLACED, id)
for each = 4, #ARGV, 2 do
  if place == ARGV[each] then
    return (each - 2) / 2
  end
end
for each = 4, #ARGV, 2 do
  if tonumber(redis.call('HGET', PLACES, ARGV[each]) or 0) < tonumber(ARGV[each + 1]) then
    leave_place(id)
    take_place(id, ARGV[each])
    return (each - 2) / 2
  end
end
return 0
