#!lua flags=allow-oom
-- KEYS unacked list, accepted; ARGV message, task id. Nothing happens when the message is not there any more.
if redis.call('LREM', KEYS[1], 1, ARGV[1]) == 1 and redis.call('HINCRBY', KEYS[2], ARGV[2], -1) <= 0 then
  redis.call('HDEL', KEYS[2], ARGV[2])
end
