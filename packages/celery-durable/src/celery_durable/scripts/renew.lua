#!lua flags=allow-oom
-- KEYS leases, then the unacked lists of a living worker, then keys that must not look idle where Redis evicts.
-- ARGV number of lists. Redis's own clock counts: hosts may disagree.
local time = redis.call('TIME')
for i = 2, ARGV[1] + 1 do redis.call('ZADD', KEYS[1], time[1] + time[2] / 1e6, KEYS[i]) end
redis.call('TOUCH', unpack(KEYS))
