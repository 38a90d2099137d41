#!lua flags=allow-oom
-- KEYS list, other list, accepted; ARGV entry, the message that takes its place, the id of a task to be accepted again.
if redis.call('LREM', KEYS[1], -1, ARGV[1]) == 1 then
  redis.call('LPUSH', KEYS[2], ARGV[2])
  if ARGV[3] ~= '' then redis.call('HINCRBY', KEYS[3], ARGV[3], 1) end
  return 1
end
return 0
