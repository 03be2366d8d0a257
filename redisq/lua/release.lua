-- release: PROCESSING -> READY, at no cost to the job
-- KEYS  1 processing  2 runs  3 ready
-- ARGV  pairs: id, token; the token "*" means a ghost: an id in this worker's own list that it does not hold
-- Returns how many went back. They go to the claim end, oldest first in line.
-- Twice: the second run finds them gone and moves nothing.

local moved = 0
for i = #ARGV - 1, 1, -2 do
  local id, token = ARGV[i], ARGV[i + 1]
  if token == '*' then
    token = token_of(redis.call('HGET', KEYS[2], id))
  end
  local run = leave_processing(KEYS[1], KEYS[2], id, token)
  if run then
    redis.call('RPUSH', KEYS[3], id)
    redis.call('HSET', KEYS[2], id, format_run(run))
    moved = moved + 1
  end
end
return moved
