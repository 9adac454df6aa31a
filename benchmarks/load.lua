-- For wrk: bodies, requests with a value that changes, and a result that load.py can read.

local body = os.getenv("BENCHMARK_BODY") or ""
if body ~= "" then
  local file = assert(io.open(body, "rb"))
  wrk.method, wrk.body = "POST", file:read("*a")
  file:close()
end

local PLACE = "{n}"

local changing = false
for _, value in pairs(wrk.headers) do
  changing = changing or value:find(PLACE, 1, true)
end

-- wrk makes the bytes of a request once unless there is a function of this name.
if changing then
  local before, after
  local n = 1000000000 -- always ten digits

  function init(args)
    local bytes = wrk.format()
    local first, last = bytes:find(PLACE, 1, true)
    before, after = bytes:sub(1, first - 1), bytes:sub(last + 1)
  end

  function request()
    n = n + 1
    return before .. n .. after
  end
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    'RESULT {"requests": %d, "microseconds": %d, "p50": %d, "p99": %d, "p999": %d, "max": %d, "errors": %d}\n',
    summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99), latency:percentile(99.9), latency.max,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
