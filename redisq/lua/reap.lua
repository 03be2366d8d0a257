-- reap: PROCESSING -> READY for a worker that is gone; PROCESSING -> DEAD for a job that was there too often
-- KEYS  1 workers  2 processing  3 ready  4 runs  5 errors  6 dead  7 dead_index  8 totals
-- ARGV  1 worker  2 the beat at which it stopped, or "" when it has no entry  3 crashes allowed
--       4 error line  5 verdict  6 how many to move at most
-- Returns {brought back, moved to DEAD, still in the list}, or nothing when the worker has moved since.
-- The entry goes when the list is empty, so that a reaper that dies half-way is followed by another.
-- Twice: the second run goes on where the first stopped, or finds nothing.

local entry = redis.call('HGET', KEYS[1], ARGV[1])
if (entry and string.match(entry, '^%d+') or '') ~= ARGV[2] then
  return {}
end
local back, dead, crashed = 0, 0, 0
for _, id in ipairs(redis.call('RPOP', KEYS[2], ARGV[6]) or {}) do
  local run = parse_run(redis.call('HGET', KEYS[4], id))
  local started = run.token ~= NOBODY -- else BLMOVE brought it, and it never ran
  if started then
    run.token = NOBODY
    run.crashes = run.crashes + 1
    crashed = crashed + 1
  end
  if run.crashes >= tonumber(ARGV[3]) then
    lay_down(KEYS[6], KEYS[7], KEYS[8], id, ARGV[5])
    dead = dead + 1
  else
    redis.call('RPUSH', KEYS[3], id)
    back = back + 1
  end
  if started then
    redis.call('HSET', KEYS[4], id, format_run(run))
    note_error(KEYS[5], id, ARGV[4])
  end
end
if crashed > 0 then
  redis.call('HINCRBY', KEYS[8], 'crashed', crashed)
end
local left = redis.call('LLEN', KEYS[2])
if left == 0 then
  redis.call('HDEL', KEYS[1], ARGV[1])
end
return {back, dead, left}
