-- defer: PROCESSING -> DELAYED without spending an attempt, or PROCESSING -> DEAD when deferred for too long
-- KEYS  1 processing  2 runs  3 errors  4 delayed  5 dead  6 dead_index  7 totals  8 clock
-- ARGV  1 id  2 token  3 longest deferral in ms  4 delay in ms  5 error line  6 verdict  7 bell
-- Returns "delayed", "dead", or "lost" when the lease was lost.
-- Rings the bell when the job is the next that is due.
-- Twice: the second run finds no token and answers "lost".

local run = leave_processing(KEYS[1], KEYS[2], ARGV[1], ARGV[2])
if not run then
  return 'lost'
end
local now, limit = now_ms(), tonumber(ARGV[3])
-- What was noted before the clock was set tells nothing of how long it was: this begins anew.
if run.deferred == 0 or run.deferred > now
  or now - run.deferred >= limit and run.deferred < (tonumber(redis.call('HGET', KEYS[8], 'stepped') or '') or 0) then
  run.deferred = now
end
redis.call('HSET', KEYS[2], ARGV[1], format_run(run))
local answer = 'delayed'
if now - run.deferred < limit then
  local due = due_in(KEYS[8], ARGV[4])
  redis.call('ZADD', KEYS[4], due, ARGV[1])
  ring(ARGV[7], KEYS[4], due, ARGV[4])
else
  lay_down(KEYS[5], KEYS[6], KEYS[7], ARGV[1], ARGV[6])
  answer = 'dead'
end
note_error(KEYS[3], ARGV[1], ARGV[5])
return answer
