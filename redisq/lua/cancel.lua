-- cancel: DELAYED -> DEAD, by an operator's word only
-- KEYS  1 delayed  2 dead  3 dead_index  4 totals
-- ARGV  1 id  2 verdict
-- Returns 1, or 0 when it is not delayed. `requeue` brings it back.
-- Twice: the second run finds it gone and answers 0.

if redis.call('ZREM', KEYS[1], ARGV[1]) == 0 then
  return 0
end
lay_down(KEYS[2], KEYS[3], KEYS[4], ARGV[1], ARGV[2])
return 1
