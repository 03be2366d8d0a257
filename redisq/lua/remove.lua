-- remove: DEAD -> (gone), by an operator's word only
-- KEYS  1 dead  2 dead_index  3 runs  4 jobs  5 errors
-- ARGV  ids
-- Returns for each id 1, or 0 when it is not dead.
-- Twice: the second run finds no dead letter and answers 0.

local answers = {}
for i, id in ipairs(ARGV) do
  answers[i] = redis.call('HDEL', KEYS[1], id)
  if answers[i] == 1 then
    redis.call('ZREM', KEYS[2], id)
    redis.call('HDEL', KEYS[3], id)
    redis.call('HDEL', KEYS[4], id)
    redis.call('HDEL', KEYS[5], id)
  end
end
return answers
