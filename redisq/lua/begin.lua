-- begin: the slot from which a schedule goes on, where none is stored, or one that lies ahead
-- KEYS  1 slots
-- ARGV  1 schedule  2 slot time in ms
-- A slot lies ahead when the clock of Redis was set back after it was stored.
-- Returns the slot that is stored now.
-- Twice, or by two schedulers: the second finds the slot of the first.

local last = tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or '')
if last and last <= now_ms() + STEP then
  return last
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return tonumber(ARGV[2])
