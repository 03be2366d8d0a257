-- retire: takes a worker run off the books when it holds nothing; otherwise its entry stays for the reaper
-- KEYS  1 workers or schedulers  2 processing, which a scheduler does not have
-- ARGV  1 worker or scheduler
-- Returns 1 when it is off, 0 when it still holds jobs.
-- Twice: the second run finds no entry; same answer.

if redis.call('LLEN', KEYS[2]) > 0 then
  return 0
end
redis.call('HDEL', KEYS[1], ARGV[1])
return 1
