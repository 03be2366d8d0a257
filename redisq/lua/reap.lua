-- reap: PROCESSING -> READY for a worker that is gone; PROCESSING -> DELAYED for a job that was there before, and
--       PROCESSING -> DEAD for one that was there too often
-- KEYS  1 workers  2 processing  3 ready  4 runs  5 errors  6 dead  7 dead_index  8 totals  9 delayed
-- ARGV  1 worker  2 the beat at which it stopped, or "" when it has no entry  3 crashes allowed
--       4 error line  5 verdict  6 how many to move at most  7 ms between two suspects  8 bell
-- Returns {brought back, moved to DEAD, still in the list}, or nothing when the worker has moved since.
-- One of those that crashed together may be the cause. After a second time they come back one by one: run together a
-- third time, the guilty one would take all of them to the dead letters.
-- The entry goes when the list is empty, so that a reaper that dies half-way is followed by another.
-- Rings the bell when the first suspect is the next job that is due.
-- Twice: the second run goes on where the first stopped, or finds nothing.

local entry = redis.call('HGET', KEYS[1], ARGV[1])
if (entry and string.match(entry, '^%d+') or '') ~= ARGV[2] then
  return {}
end
local back, suspects, dead, crashed = 0, 0, 0, 0
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
  elseif started and run.crashes > 1 then
    suspects = suspects + 1
    local wait = suspects * ARGV[7]
    local due = now_ms() + wait
    redis.call('ZADD', KEYS[9], due, id)
    ring(ARGV[8], KEYS[9], due, wait)
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
return {back + suspects, dead, left}
