-- promote: DELAYED -> READY for what is due
-- KEYS  1 delayed  2 ready
-- ARGV  1 how many to move at most
-- Returns {moved, ms until the next is due, or -1 when none is delayed}.
-- Twice, or by two schedulers: the second finds them gone.

local function next_due()
  return tonumber(redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')[2])
end

local next = next_due() -- first, so that a look at a queue with nothing delayed costs one command
if not next then
  return {0, -1}
end
local now = now_ms()
local due = {}
if next <= now then
  due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])
  redis.call('ZREM', KEYS[1], unpack(due))
  redis.call('LPUSH', KEYS[2], unpack(due))
  next = next_due()
end
return {#due, next and math.max(0, next - now) or -1}
