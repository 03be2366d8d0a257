-- requeue: DEAD -> READY with its attempts, crashes and deferrals forgiven; its history stays
-- KEYS  1 dead  2 dead_index  3 runs  4 jobs  5 ready
-- ARGV  ids
-- Returns for each id 1, 0 when it is not dead, or -1 when its job is missing, so that there is nothing to run.
-- Twice: the second run finds no dead letter and answers 0.

local answers = {}
for i, id in ipairs(ARGV) do
  answers[i] = 0
  if redis.call('HEXISTS', KEYS[1], id) == 1 then
    answers[i] = -1
    if redis.call('HEXISTS', KEYS[4], id) == 1 then
      redis.call('HDEL', KEYS[1], id)
      redis.call('ZREM', KEYS[2], id)
      redis.call('HDEL', KEYS[3], id)
      redis.call('LPUSH', KEYS[5], id)
      answers[i] = 1
    end
  end
end
return answers
