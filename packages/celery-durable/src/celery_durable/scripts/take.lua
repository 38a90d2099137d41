#!lua flags=allow-oom
-- KEYS a queue and our list, in pairs. Returns the first message that there is and the number of its pair.
for i = 1, #KEYS, 2 do
  local message = redis.call('LMOVE', KEYS[i], KEYS[i + 1], 'RIGHT', 'LEFT')
  if message then return {(i - 1) / 2, message} end
end
return false
