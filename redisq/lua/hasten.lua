-- hasten: DELAYED -> READY before its time, by an operator's word only
-- KEYS  1 delayed  2 ready
-- ARGV  1 id
-- Returns 1, or 0 when it is not delayed. It is the next to be claimed.
-- Twice: the second run finds it gone and answers 0.

if redis.call('ZREM', KEYS[1], ARGV[1]) == 0 then
  return 0
end
redis.call('RPUSH', KEYS[2], ARGV[1])
return 1
