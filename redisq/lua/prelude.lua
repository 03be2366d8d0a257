-- Shared by every script; the loader puts it in front.
--
-- A run record, the value of `runs`, is "token deliveries attempts crashes deferred_since_ms".
-- The token is "-" while nobody runs the job. A job that was never claimed has no record.

local NOBODY = '-'

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- The clock of Redis may be set. `clock` is HASH(seen: the time at the last look, in ms; stepped: the time just after it
-- was found set; by: how far it was put forward or, below 0, back). A clock that is off by less is not looked after.
local STEP = 5000
-- Forward more: a process that was stopped between two looks expects too little.
local LEAP = 60000

local function seen_ms(clock)
  return tonumber(redis.call('HGET', clock, 'seen') or '') or 0
end

-- A full Redis, or an older ACL, may refuse this: then the next step back is noticed by a keeper's own clock.
local function note_time(clock, now, seen)
  if now - seen >= STEP / 2 then
    redis.pcall('HSET', clock, 'seen', string.format('%.0f', now))
  end
end

-- The time of a job that is to wait `delay` ms. Until a keeper has seen that the clock was set back, the jobs that wait
-- go by the time that it had, and are then moved with this one.
local function due_in(clock, delay)
  local now, seen = now_ms(), seen_ms(clock)
  note_time(clock, now, seen)
  return math.max(now, seen) + delay
end

local function parse_run(record)
  if record then
    local token, deliveries, attempts, crashes, deferred = string.match(record, '^(%S+) (%d+) (%d+) (%d+) (%d+)$')
    if token then
      return {token = token, deliveries = tonumber(deliveries), attempts = tonumber(attempts),
              crashes = tonumber(crashes), deferred = tonumber(deferred)}
    end
  end
  return {token = NOBODY, deliveries = 0, attempts = 0, crashes = 0, deferred = 0}
end

local function format_run(run)
  return string.format('%s %d %d %d %.0f', run.token, run.deliveries, run.attempts, run.crashes, run.deferred)
end

-- Cheaper than the whole record, for the many exits that need no more.
local function token_of(record)
  return record and string.match(record, '^%S+') or NOBODY
end

-- The fence of every exit from PROCESSING: only the token of the last claim opens it.
-- LREM searches from the tail, where the oldest claims are. It is also the freeing write, so it comes first:
-- a full Redis lets a script go on that has freed something.
local function leave_processing(processing, runs, id, token)
  local record = redis.call('HGET', runs, id)
  if token_of(record) ~= token or redis.call('LREM', processing, -1, id) ~= 1 then
    return nil
  end
  local run = parse_run(record)
  run.token = NOBODY
  return run
end

-- The history of a job's errors, a line each: "A" (attempt) or "D" (deferral), then one or two JSON objects with a tab
-- between, which Lua never reads. The first is short and stays. The second has the texts that may be long: the oldest go
-- when the history is larger than ROOM. Of very many attempts the FIRST and the LAST are kept, and a line "N" with the
-- number of those between. Of a run of deferrals the last is kept. Earlier releases wrote one object, which stays whole.
local ROOM, FIRST, LAST = 16384, 10, 100

local function without_the_middle(history)
  local lines, attempts, left_out = {}, {}, 0 -- `attempts` has their places among the lines
  for line in string.gmatch(history, '[^\n]+') do
    if string.sub(line, 1, 1) == 'N' then
      left_out = left_out + (tonumber(string.match(line, '^N(%d+)$')) or 0)
    else
      lines[#lines + 1] = line
      attempts[#attempts + 1] = string.sub(line, 1, 1) == 'A' and #lines or nil
    end
  end
  local over = math.max(0, #attempts - FIRST - LAST)
  local kept = {}
  for place, line in ipairs(lines) do
    if over == 0 or place <= attempts[FIRST] or place >= attempts[FIRST + over + 1] then
      kept[#kept + 1] = line
    end
    if place == attempts[FIRST] and left_out + over > 0 then
      kept[#kept + 1] = string.format('N%.0f', left_out + over)
    end
  end
  return kept
end

local function within_bounds(history)
  local lines = without_the_middle(history)
  local size = #lines
  for _, line in ipairs(lines) do
    size = size + #line
  end
  for place = 1, #lines - 1 do -- what happened last stays whole
    if size > ROOM then
      local short = string.match(lines[place], '^[^\t]*')
      size = size - #lines[place] + #short
      lines[place] = short
    end
  end
  return table.concat(lines, '\n')
end

local function note_error(errors, id, line)
  local history = redis.call('HGET', errors, id)
  if history and string.sub(line, 1, 1) == 'D' then
    local before, last = string.match(history, '^(.*\n)([^\n]*)$')
    last = last or history
    if string.sub(last, 1, 1) == 'D' then
      history = before and string.sub(before, 1, -2)
    end
  end
  history = history and history .. '\n' .. line or line
  local _, breaks = string.gsub(history, '\n', '')
  if #history > ROOM or breaks >= FIRST + LAST then
    history = within_bounds(history)
  end
  redis.call('HSET', errors, id, history)
end

-- Rings for the keepers, who sleep until the next job is due: this one, `wait` ms from now, when none is due sooner.
-- They look now and then without it, so a bell that Redis will not ring (its ACL knows channels) must not stop a script
-- half-way. Ringing takes no memory and is no write: a full Redis rings too.
local function ring(bell, delayed, due, wait)
  local first = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')
  if tonumber(first[2]) >= due then
    redis.pcall('PUBLISH', bell, wait)
  end
end

-- Into DEAD. The job and its history stay where they are; `dead` holds the verdict.
local function lay_down(dead, dead_index, totals, id, verdict)
  redis.call('HSET', dead, id, verdict)
  redis.call('ZADD', dead_index, now_ms(), id)
  redis.call('HINCRBY', totals, 'dead', 1)
end

-- Where a job is: the one place that promise 3 speaks of. False when there is no such job.
local function state_of(id, jobs, runs, delayed, dead)
  if redis.call('HEXISTS', dead, id) == 1 then return 'dead' end
  if redis.call('HEXISTS', jobs, id) == 0 then return false end
  if parse_run(redis.call('HGET', runs, id)).token ~= NOBODY then return 'processing' end
  if redis.call('ZSCORE', delayed, id) then return 'delayed' end
  return 'ready'
end
