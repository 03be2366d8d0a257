-- claim: READY -> PROCESSING
-- KEYS  1 ready  2 processing  3 jobs  4 runs
-- ARGV  1 how many to take  2 token of this call  3.. ids that BLMOVE has already put into this processing list
-- Returns {ids, their envelopes (nil where there is none), {place, attempts, crashes} of each claimed before}.
-- Each delivery gets its own token, that of the call and its place among the ids, and is counted before anybody looks
-- at the payload. Out of a list, then into it: unlike LMOVE, this order works when Redis is full.
-- Twice: the second run claims other jobs; those of a run whose reply was lost are ghosts, and the worker returns them.

local ids = {}
for i = 3, #ARGV do
  if redis.call('LREM', KEYS[2], '1', ARGV[i]) == 1 then -- from the head, where BLMOVE put it; else it was reaped
    ids[#ids + 1] = ARGV[i]
  end
end
local want = tonumber(ARGV[1])
for _, id in ipairs(want > 0 and redis.call('RPOP', KEYS[1], want) or {}) do
  ids[#ids + 1] = id
end
if #ids == 0 then
  return {{}, {}, {}}
end
redis.call('LPUSH', KEYS[2], unpack(ids))

local envelopes = redis.call('HMGET', KEYS[3], unpack(ids))
local records = redis.call('HMGET', KEYS[4], unpack(ids))
local changed, again = {}, {}
for i, id in ipairs(ids) do
  local record = ARGV[2] .. '.' .. i .. ' 1 0 0 0'
  if records[i] then
    local run = parse_run(records[i])
    run.token = ARGV[2] .. '.' .. i
    run.deliveries = run.deliveries + 1
    record = format_run(run)
    again[#again + 1] = {i, run.attempts, run.crashes}
  end
  changed[2 * i - 1], changed[2 * i] = id, record
end
redis.call('HSET', KEYS[4], unpack(changed))
return {ids, envelopes, again}
