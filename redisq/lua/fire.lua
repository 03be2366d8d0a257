-- fire: a schedule's slot -> READY
-- KEYS  1 slots  2 jobs  3 dead  4 ready  5 runs  6 delayed  7 fired
-- ARGV  1 schedule  2 slot time in ms  3 id or ""  4 envelope
-- An empty id stores the slot without a job: a schedule seen for the first time, or a slot skipped by its policy.
-- Returns "taken" when the slot, or a later one, was taken before; else what became of the job: "new", the state in
-- which that id already is, "far" for one that is delayed for hours yet, or "none".
-- A slot counts as fired when its job is in, or was in already, and is not dead.
-- Twice, or by two schedulers: the second finds the slot stored. A job that already exists is not put in again.

local FAR = 7200000 -- ms: longer than the longest backoff that a kind has by default

local last = tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or '')
if last and last >= tonumber(ARGV[2]) then
  return 'taken'
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
if ARGV[3] == '' then
  return 'none'
end
if redis.call('HEXISTS', KEYS[3], ARGV[3]) == 1 then
  return 'dead'
end
redis.call('HSET', KEYS[7], ARGV[1], ARGV[2])
if redis.call('HSETNX', KEYS[2], ARGV[3], ARGV[4]) == 1 then
  redis.call('LPUSH', KEYS[4], ARGV[3])
  return 'new'
end
local state = state_of(ARGV[3], KEYS[2], KEYS[5], KEYS[6], KEYS[3])
if state == 'delayed' and tonumber(redis.call('ZSCORE', KEYS[6], ARGV[3])) > now_ms() + FAR then
  return 'far'
end
return state
