-- ARGV: ids. Answers for each the key that keeps it waiting and that key's capacity, or false.
local now = clock()
local answers = {}
for each = 2, #ARGV do
  local id = ARGV[each]
  local record = redis.call('HGET', ITEMS, id)
  local found = false
  if record and redis.call('HEXISTS', TOKENS, id) == 0 then
    local item = parse(record)
    local keys = keys_of(item)
    local index = tonumber(item.due) <= now and blocking(keys)
    if index then
      found = {keys[index].name, keys[index].capacity}
    end
  end
  answers[#answers + 1] = found
end
return answers
