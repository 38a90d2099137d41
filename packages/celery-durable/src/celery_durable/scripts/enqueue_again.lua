-- KEYS and ARGV as for ENQUEUE, for a message that Redis may have forgotten. Nothing happens when it is there.
if redis.call('HEXISTS', KEYS[2], ARGV[2]) == 1 then return 0 end
if KEYS[3] then redis.call('SET', KEYS[3], ARGV[3], 'NX', 'EX', ARGV[4]) end
redis.call('HINCRBY', KEYS[2], ARGV[2], 1)
redis.call('LPUSH', KEYS[1], ARGV[1])
return 1
