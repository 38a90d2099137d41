-- KEYS leases, unacked list, its idle set. The last one out forgets the lease.
if redis.call('EXISTS', KEYS[2]) == 0 then
  redis.call('ZREM', KEYS[1], KEYS[2])
  redis.call('DEL', KEYS[3])
end
