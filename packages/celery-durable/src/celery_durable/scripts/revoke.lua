#!lua flags=allow-oom
-- KEYS revocations; ARGV how many are kept, for how many seconds, how many are new, these, and those that were heeded.
local now = tonumber(redis.call('TIME')[1])
for i = 4, #ARGV do
  if i <= ARGV[3] + 3 then redis.call('ZADD', KEYS[1], now, ARGV[i]) else redis.call('ZREM', KEYS[1], ARGV[i]) end
end
local old = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2])
for _, entry in ipairs(old) do redis.call('ZREM', KEYS[1], entry) end
for _, entry in ipairs(redis.call('ZRANGE', KEYS[1], 0, -ARGV[1] - 1)) do redis.call('ZREM', KEYS[1], entry) end
