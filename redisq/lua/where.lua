-- where: moves nothing
-- KEYS  1 jobs  2 runs  3 delayed  4 dead
-- ARGV  ids
-- Returns for each id its state, or "" when there is no such job.

local answers = {}
for i, id in ipairs(ARGV) do
  answers[i] = state_of(id, KEYS[1], KEYS[2], KEYS[3], KEYS[4]) or ''
end
return answers
