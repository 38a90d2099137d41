-- KEYS queue, accepted[, idempotency keys]; ARGV of each message: text, task id, value of its key or '', seconds to keep
-- that. All messages are pushed, or none. Returns for each message its key's earlier value, or nothing when it was
-- pushed, and no list at all without keys; the number of the first message, from 1, whose key was used with other data.
local function data_of(value) return string.match(value, ' (.*)$') end
local earlier, number, key = {}, 0, 2
for at = 1, #ARGV, 4 do
  number = number + 1
  earlier[number] = false
  if ARGV[at + 2] ~= '' then
    key = key + 1
    earlier[number] = redis.call('GET', KEYS[key])
    if earlier[number] and data_of(earlier[number]) ~= data_of(ARGV[at + 2]) then return number end
  end
end
-- A key of another type fails before anything is written: the queue here, accepted with the first write.
redis.call('LLEN', KEYS[1])
number, key = 0, 2
for at = 1, #ARGV, 4 do
  number = number + 1
  if ARGV[at + 2] ~= '' then key = key + 1 end
  if not earlier[number] then
    redis.call('HINCRBY', KEYS[2], ARGV[at + 1], 1)
    if ARGV[at + 2] ~= '' then redis.call('SET', KEYS[key], ARGV[at + 2], 'EX', ARGV[at + 3]) end
    redis.call('LPUSH', KEYS[1], ARGV[at])
  end
end
return KEYS[3] and earlier
