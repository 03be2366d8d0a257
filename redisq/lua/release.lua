-- release: PROCESSING -> READY, at no cost to the job
-- KEYS  1 processing  2 runs  3 ready
-- ARGV  pairs: id, token ("-" for one that was moved here and never started)
-- Returns how many went back. They go to the claim end, oldest first in line.
-- Twice: the second run finds them gone and moves nothing.

local moved = 0
for i = #ARGV - 1, 1, -2 do
  local run = leave_processing(KEYS[1], KEYS[2], ARGV[i], ARGV[i + 1])
  if run then
    redis.call('RPUSH', KEYS[3], ARGV[i])
    redis.call('HSET', KEYS[2], ARGV[i], format_run(run))
    moved = moved + 1
  end
end
return moved
