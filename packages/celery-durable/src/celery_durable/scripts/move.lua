#!lua flags=allow-oom
-- KEYS list, other list; ARGV messages, the oldest first. Returns how many were still there to be moved.
local moved = 0
for _, message in ipairs(ARGV) do
  if redis.call('LREM', KEYS[1], -1, message) == 1 then
    redis.call('LPUSH', KEYS[2], message)
    moved = moved + 1
  end
end
return moved
