#!lua flags=allow-oom
-- KEYS a queue and our list, in pairs; ARGV the number of messages. Takes one of each queue in turn and returns them, each
-- with the number of its pair; nothing where there is none.
local taken, before = {}, -1
while #taken < tonumber(ARGV[1]) and #taken > before do
  before = #taken
  for i = 1, #KEYS, 2 do
    local message = #taken < tonumber(ARGV[1]) and redis.call('LMOVE', KEYS[i], KEYS[i + 1], 'RIGHT', 'LEFT')
    if message then taken[#taken + 1] = {(i - 1) / 2, message} end
  end
end
return taken
