-- heartbeat: registers a worker run, or renews its lease
-- KEYS  1 workers
-- ARGV  1 worker  2 what it says of itself (JSON, not read here)
-- Returns 1 when the entry was there, 0 when it is new: at the start, or because the lease had been taken away.
-- The entry is "beat info"; a reaper watches whether the beat moves. Freed first, so that a full Redis does not end leases.
-- Twice: the beat moves twice.

local entry = redis.call('HGET', KEYS[1], ARGV[1])
local beat = entry and string.match(entry, '^%d+') or redis.call('TIME')[1]
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f', beat + 1) .. ' ' .. ARGV[2])
return entry and 1 or 0
