-- wrk -s request.lua URL -- PATHS: the paths of a file in turn; method, body and key come from the environment.
-- The last line of the output is a JSON object.
local requests, number = {}, 0

function init(arguments)
  local headers = { ["Content-Type"] = "application/json", ["X-API-Key"] = os.getenv("BENCH_KEY") }
  for path in io.lines(arguments[1]) do
    table.insert(requests, wrk.format(os.getenv("BENCH_METHOD"), path, headers, os.getenv("BENCH_BODY")))
  end
end

function request()
  number = number % #requests + 1
  return requests[number]
end

function done(summary, latency)
  local errors = summary.errors
  print(string.format(
    '{"rate": %f, "p50": %f, "p99": %f, "answers": %d, "failed": %d, "broken": %d}',
    summary.requests / summary.duration * 1e6, latency:percentile(50) / 1000, latency:percentile(99) / 1000,
    summary.requests, errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
