#!lua flags=allow-oom
-- KEYS figures, workers, failures, what the names of the minutes' keys begin with; ARGV node, its state, three JSON
-- arrays: words for the figures and words for the minute, each pairs of a field and what is to be added to it, and
-- failures, oldest first; then the seconds that a minute is kept, and the number of failures that are.
local now = redis.call('TIME')[1]
redis.pcall('HSET', KEYS[2], ARGV[1], now .. ' ' .. ARGV[2])
-- What is no number, or no hash, is somebody else's: it must not keep the other counts out.
local function add(key, words)
  for i = 1, #words, 2 do
    local sum = redis.pcall('HINCRBYFLOAT', key, words[i], words[i + 1])
    if type(sum) == 'table' and sum.err then redis.pcall('HSET', key, words[i], words[i + 1]) end
  end
end
add(KEYS[1], cjson.decode(ARGV[3]))
local minute, words = KEYS[4] .. math.floor(now / 60), cjson.decode(ARGV[4])
if #words > 0 then
  add(minute, words)
  redis.call('EXPIRE', minute, ARGV[6])
end
local failures = cjson.decode(ARGV[5])
for _, failure in ipairs(failures) do redis.pcall('LPUSH', KEYS[3], failure) end
if #failures > 0 then redis.pcall('LTRIM', KEYS[3], 0, ARGV[7] - 1) end
