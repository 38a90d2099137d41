-- KEYS queue, accepted, its deferred list, leases; ARGV message, task id, the message as it was sent first.
-- For a message whose answer was lost. Nothing happens where one of its forms waits or runs; among many it is a new one.
local places = redis.call('ZRANGE', KEYS[4], 0, -1)
places[#places + 1], places[#places + 2] = KEYS[1], KEYS[3]
for _, place in ipairs(places) do
  for _, form in ipairs({ARGV[1], ARGV[3]}) do
    if redis.call('LPOS', place, form, 'MAXLEN', 10000) then return 0 end
  end
end
redis.call('HINCRBY', KEYS[2], ARGV[2], 1)
redis.call('LPUSH', KEYS[1], ARGV[1])
return 1
