-- promote: DELAYED -> READY for what is due
-- KEYS  1 delayed  2 ready  3 clock
-- ARGV  1 how many to move at most  2 the time in ms by the caller's last look and its own monotonic clock, or ""
-- When the clock was set back, each delayed job keeps the wait that it had. When it was put forward, they come early.
-- Returns {moved, ms until the next is due or -1 when none is delayed, ms by which the clock was set, the time in ms}.
-- Twice, or by two schedulers: the second finds them gone, and the clock as it is.

local function next_due()
  return tonumber(redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')[2])
end

-- Moves the times of all delayed jobs by `step` ms, which is below 0, so that each keeps its place in their order.
local function shift(step)
  local start = 0
  repeat
    local page, moved = redis.call('ZRANGE', KEYS[1], start, start + 999, 'WITHSCORES'), {}
    for i = 1, #page, 2 do
      moved[i], moved[i + 1] = string.format('%.0f', page[i + 1] + step), page[i]
    end
    if #page > 0 then
      redis.call('ZADD', KEYS[1], unpack(moved))
    end
    start = start + 1000
  until #page < 2000
end

local next, now, expected = next_due(), now_ms(), tonumber(ARGV[2])
local seen = next and seen_ms(KEYS[3]) or 0
local step = 0
if seen > now + STEP then
  step = now - seen
elseif expected and (now < expected - STEP or now > expected + LEAP) then
  step = now - expected
end
if step == 0 then
  if next then
    note_time(KEYS[3], now, seen)
  end
else
  local at = string.format('%.0f', now)
  redis.call('HDEL', KEYS[3], 'seen') -- freed first, so that a full Redis lets this go on
  redis.call('HSET', KEYS[3], 'seen', at, 'stepped', at, 'by', string.format('%.0f', step))
  if seen > now + STEP then
    shift(step)
    next = next_due()
  end
end

local due = {}
if next and next <= now then
  due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])
  redis.call('ZREM', KEYS[1], unpack(due))
  redis.call('LPUSH', KEYS[2], unpack(due))
  next = next_due()
end
return {#due, next and math.max(0, next - now) or -1, step, now}
