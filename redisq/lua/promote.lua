-- promote: DELAYED -> READY for what is due
-- KEYS  1 delayed  2 ready
-- ARGV  1 how many to move at most
-- Returns {moved, ms until the next is due, or -1 when none is delayed}.
-- Twice, or by two schedulers: the second finds them gone.
-- A write even when nothing is due (of no element): its caller must know whether workers can renew their leases.

local now = now_ms()
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])
if #due > 0 then
  redis.call('ZREM', KEYS[1], unpack(due))
  redis.call('LPUSH', KEYS[2], unpack(due))
else
  redis.call('RPOP', KEYS[2], 0)
end
local next = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
return {#due, next[2] and math.max(0, next[2] - now) or -1}
