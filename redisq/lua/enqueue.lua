-- enqueue: (new) -> READY, or (new) -> DELAYED when a delay is given
-- KEYS  1 jobs  2 runs  3 dead  4 ready  5 delayed  6 clock
-- ARGV  1 delay in ms  2 bell, then pairs: id, envelope
-- Returns for each pair "new", or the state in which that id already is, with spaces between: five hundred answers in
-- one text take Redis and the producer less than a list of them.
-- Rings the bell when the delayed jobs are the next that are due.
-- Twice: the second run finds every id and changes nothing.

local answers, fresh, later = {}, {}, false
local due = ARGV[1] ~= '0' and due_in(KEYS[6], ARGV[1])
for i = 3, #ARGV, 2 do
  local id = ARGV[i]
  -- A dead letter may have lost its job, so that HSETNX alone would not see it.
  if redis.call('HEXISTS', KEYS[3], id) == 0 and redis.call('HSETNX', KEYS[1], id, ARGV[i + 1]) == 1 then
    if due then
      redis.call('ZADD', KEYS[5], due, id)
      later = true
    else
      fresh[#fresh + 1] = id
    end
    answers[#answers + 1] = 'new'
  else
    answers[#answers + 1] = state_of(id, KEYS[1], KEYS[2], KEYS[5], KEYS[3])
  end
end
if #fresh > 0 then
  redis.call('LPUSH', KEYS[4], unpack(fresh))
end
if later then
  ring(ARGV[2], KEYS[5], due, ARGV[1])
end
return table.concat(answers, ' ')
