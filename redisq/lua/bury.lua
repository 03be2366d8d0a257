-- bury: PROCESSING -> DEAD
-- KEYS  1 processing  2 runs  3 errors  4 dead  5 dead_index  6 totals
-- ARGV  1 id  2 token  3 error line  4 verdict
-- Returns "dead", or "lost" when the lease was lost.
-- Twice: the second run finds no token and answers "lost".

local run = leave_processing(KEYS[1], KEYS[2], ARGV[1], ARGV[2])
if not run then
  return 'lost'
end
run.attempts = run.attempts + 1
redis.call('HSET', KEYS[2], ARGV[1], format_run(run))
lay_down(KEYS[4], KEYS[5], KEYS[6], ARGV[1], ARGV[4])
note_error(KEYS[3], ARGV[1], ARGV[3])
return 'dead'
