#!lua flags=allow-oom
-- KEYS idle set; ARGV how many digests are new in it, these, and those that are not in it any more.
for i = 2, #ARGV do redis.call(i <= ARGV[1] + 1 and 'SADD' or 'SREM', KEYS[1], ARGV[i]) end
