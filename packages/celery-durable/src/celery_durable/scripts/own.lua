#!lua flags=allow-oom
-- KEYS owner of a name; ARGV who wants it or has it, and who is known to be dead. Returns another owner and the time of
-- its last sign of life, or nothing when the name is ours from now on.
local found = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
if found[1] and found[1] ~= ARGV[1] and found[1] ~= ARGV[2] then return found end
local time = redis.call('TIME')
redis.call('DEL', KEYS[1])
redis.call('ZADD', KEYS[1], time[1] + time[2] / 1e6, ARGV[1])
redis.call('EXPIRE', KEYS[1], 86400)
return false
