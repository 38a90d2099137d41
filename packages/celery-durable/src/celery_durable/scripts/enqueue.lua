-- KEYS queue, accepted[, idempotency key]; ARGV message, task id[, value, seconds to keep].
-- Returns the idempotency key's earlier value, or nothing when the message was pushed.
if KEYS[3] then
  local earlier = redis.call('SET', KEYS[3], ARGV[3], 'NX', 'GET', 'EX', ARGV[4])
  if earlier then return earlier end
end
redis.call('HINCRBY', KEYS[2], ARGV[2], 1)
redis.call('LPUSH', KEYS[1], ARGV[1])
return false
