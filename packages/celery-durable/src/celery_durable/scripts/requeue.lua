#!lua flags=allow-oom
-- KEYS unacked list, queue; ARGV message, the message with what changed of it. It will be the next to be taken.
if redis.call('LREM', KEYS[1], 1, ARGV[1]) == 1 then
  redis.call('RPUSH', KEYS[2], ARGV[2])
  return 1
end
return 0
