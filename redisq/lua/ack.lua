-- ack: PROCESSING -> (done)
-- KEYS  1 processing  2 runs  3 jobs  4 errors  5 totals
-- ARGV  pairs: id, token
-- Returns for each pair 1, or 0 when the lease was lost.
-- Twice: the second run finds no token and answers 0.

local ids = {}
for i = 1, #ARGV, 2 do
  ids[#ids + 1] = ARGV[i]
end
local records = redis.call('HMGET', KEYS[2], unpack(ids))
local answers, held, awaited = {}, 0, {}
for i, id in ipairs(ids) do
  if token_of(records[i]) == ARGV[2 * i] then
    answers[i], held, awaited[id] = 1, held + 1, true
  end
end

-- The oldest claims are at the tail. Short jobs that were claimed together end together: then they are the tail, and
-- leave in one call. Else, and where an ACL forbids LRANGE, each is searched for. No id counts twice.
local found = 0
for _, id in ipairs(held > 1 and redis.pcall('LRANGE', KEYS[1], -held, -1) or {}) do
  if awaited[id] then
    awaited[id], found = nil, found + 1
  end
end
local are_oldest = held > 1 and found == held
if are_oldest then
  redis.call('RPOP', KEYS[1], held)
end

local done = {}
local last = '-1' -- as text: Redis takes its time to print a number, and this may be done for every job
for i, id in ipairs(ids) do
  if answers[i] and (are_oldest or redis.call('LREM', KEYS[1], last, id) == 1) then
    done[#done + 1] = id
  else
    answers[i] = 0
  end
end
if #done > 0 then
  redis.call('HDEL', KEYS[3], unpack(done))
  redis.call('HDEL', KEYS[2], unpack(done))
  redis.call('HDEL', KEYS[4], unpack(done))
  redis.call('HINCRBY', KEYS[5], 'done', #done)
end
return answers
