-- muster: moves nothing; finds the lists of runs that no entry speaks for, and keeps the roll of runs that may have one
-- KEYS  1 roll  2 workers, then the processing list of each run
-- ARGV  1 ms until a run is forgotten, then the runs
-- Returns the runs that hold jobs and have no entry.
-- The roll has 0 for a run with an entry or with jobs, else the ms since when it has neither. A time to come is of a clock
-- that was put right. Freed first, so that a full Redis lets it be written.
-- Twice: same answer.

local now = now_ms()

local function note(run, since)
  redis.call('ZREM', KEYS[1], run)
  redis.call('ZADD', KEYS[1], since, run)
end

local found = {}
for i = 2, #ARGV do
  local run = ARGV[i]
  local entry = redis.call('HEXISTS', KEYS[2], run) == 1
  local length = redis.pcall('LLEN', KEYS[i + 1])
  local holds = type(length) == 'number' and length > 0 -- what is no list must not hide the others
  local since = tonumber(redis.call('ZSCORE', KEYS[1], run) or '')
  if holds and not entry then
    found[#found + 1] = run
  end
  if entry or holds then
    if since ~= 0 then note(run, 0) end
  elseif since == 0 or (since and since > now) then
    note(run, now)
  elseif since and now - since >= tonumber(ARGV[1]) then
    redis.call('ZREM', KEYS[1], run)
  end
end
return found
