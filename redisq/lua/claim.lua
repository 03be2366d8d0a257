-- claim: READY -> PROCESSING
-- KEYS  1 ready  2 processing  3 jobs  4 runs
-- ARGV  1 how many to take  2 token of this call  3.. ids that BLMOVE has already put into this processing list
-- Returns for each job: id, token, envelope (or ""), attempts, crashes.
-- Each delivery gets its own token and is counted before anybody looks at the payload. Out of a list, then into it:
-- unlike LMOVE, this order works when Redis is full.
-- Twice: the second run claims other jobs; those of a run whose reply was lost are ghosts, and the worker returns them.

local ids = {}
for i = 3, #ARGV do
  if redis.call('LREM', KEYS[2], -1, ARGV[i]) == 1 then -- else it was reaped since
    ids[#ids + 1] = ARGV[i]
  end
end
local want = tonumber(ARGV[1])
for _, id in ipairs(want > 0 and redis.call('RPOP', KEYS[1], want) or {}) do
  ids[#ids + 1] = id
end
if #ids == 0 then
  return {}
end
redis.call('LPUSH', KEYS[2], unpack(ids))

local envelopes = redis.call('HMGET', KEYS[3], unpack(ids))
local records = redis.call('HMGET', KEYS[4], unpack(ids))
local claimed, changed = {}, {}
for i, id in ipairs(ids) do
  local token, attempts, crashes = ARGV[2] .. '.' .. i, 0, 0
  local record = token .. ' 1 0 0 0'
  if records[i] then
    local run = parse_run(records[i])
    run.token = token
    run.deliveries = run.deliveries + 1
    record = format_run(run)
    attempts, crashes = run.attempts, run.crashes
  end
  changed[2 * i - 1], changed[2 * i] = id, record
  local n = 5 * (i - 1)
  claimed[n + 1], claimed[n + 2], claimed[n + 3] = id, token, envelopes[i] or ''
  claimed[n + 4], claimed[n + 5] = attempts, crashes
end
redis.call('HSET', KEYS[4], unpack(changed))
return claimed
