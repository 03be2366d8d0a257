-- heartbeat: registers the run of a worker, or renews its lease; a scheduler, which has none, shows that it lives
-- KEYS  1 workers or schedulers  2 roll, which a scheduler is not on
-- ARGV  1 worker or scheduler  2 what it says of itself (JSON, not read here)
-- Returns 1 when the entry was there, 0 when it is new: at the start, or because the lease had been taken away.
-- The entry is "beat info". The beat is the time in ms, and moves whatever the clock does: a reaper watches whether it
-- moves, and only people read it as a time. Freed first, so that a full Redis does not end leases.
-- The roll outlives the entry, so that a list that is filled later is found.
-- Twice: the beat moves twice.

local entry = redis.call('HGET', KEYS[1], ARGV[1])
local last = entry and tonumber(string.match(entry, '^%d+')) or 0
local now = now_ms()
-- A beat that lies further ahead is from before the clock was set back.
local beat = last >= now and last <= now + STEP and last + 1 or now
redis.call('HDEL', KEYS[1], ARGV[1])
if not entry and KEYS[2] then
  redis.call('ZADD', KEYS[2], 0, ARGV[1])
end
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f ', beat) .. ARGV[2])
return entry and 1 or 0
