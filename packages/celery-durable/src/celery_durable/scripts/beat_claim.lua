-- KEYS lease, last runs; ARGV who has the lease, an entry's name, its last run as they know it, this run.
-- Returns 1 when they may send it: nobody else has the lease, and nobody has sent this run.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
local known = redis.call('HGET', KEYS[2], ARGV[2])
if known and known ~= ARGV[3] then return 0 end
redis.call('HSET', KEYS[2], ARGV[2], ARGV[4])
return 1
