-- ack: PROCESSING -> (done)
-- KEYS  1 processing  2 runs  3 jobs  4 errors  5 totals
-- ARGV  pairs: id, token
-- Returns for each pair 1, or 0 when the lease was lost.
-- Twice: the second run finds no token and answers 0.

local ids = {}
for i = 1, #ARGV, 2 do
  ids[#ids + 1] = ARGV[i]
end
local records = redis.call('HMGET', KEYS[2], unpack(ids))
local answers, done = {}, {}
local last = '-1' -- as text: Redis takes its time to print a number, and this is done for every job
for i, id in ipairs(ids) do
  if token_of(records[i]) == ARGV[2 * i] and redis.call('LREM', KEYS[1], last, id) == 1 then
    done[#done + 1] = id
    answers[i] = 1
  else
    answers[i] = 0
  end
end
if #done > 0 then
  redis.call('HDEL', KEYS[3], unpack(done))
  redis.call('HDEL', KEYS[2], unpack(done))
  redis.call('HDEL', KEYS[4], unpack(done))
  redis.call('HINCRBY', KEYS[5], 'done', #done)
end
return answers
