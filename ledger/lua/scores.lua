-- One exchange between a replica and the shared scores: it tells what it has added since the last, and is told what has
-- changed. A score halves every `half_ms`. ARGV: JSON. KEYS: the state, the number of this session's last exchange, then
-- for each table its scores and their order. All is read and checked before anything is written.
--
-- state     epoch, run (of the server it began on), version (of the last change), latest_ms (time of an exchange)
-- scores    key -> score and when it was that, in ms: `1500|1772323200000`
-- order     key -> the version at which it was last touched
-- ask       session, number, epoch, half_ms, score_max, faded, age_ms (of `adds`), keep_s, answer_max, and per table:
--           since (version up to which all is known), keys_max, adds and floors (each key, amount, key, amount, ...)

local ask = cjson.decode(ARGV[1])
local clock = redis.call('TIME')
local now_ms = clock[1] * 1000 + math.floor(clock[2] / 1000)
-- A clock is set back by less than this now and then, and scores then stand still for as long.
local BACK_MS_MAX = 5000

local function text(number)
  return string.format('%.0f', number)
end

local function faded(score, passed_ms)
  return math.floor(score * math.pow(2, -math.max(0, passed_ms) / ask.half_ms))
end

local function score_of(at, key)
  local score, ms = string.match(redis.call('HGET', KEYS[2 * at + 1], key) or '', '^(%d+)|(%d+)$')
  return score and faded(tonumber(score), now_ms - tonumber(ms)) or 0
end

-- What was added is counted by the exchange that comes after the last one, once; one that comes again tells nothing new.
-- Where the number fits neither, this server has lost an exchange, or never had this session. A session begins with an
-- exchange 0 that tells nothing, so that one that comes late counts for nothing where the session was forgotten.
local last = tonumber(redis.call('GET', KEYS[2]) or (ask.number == 0 and 0 or -1))
if last ~= ask.number and last ~= ask.number - 1 then
  return {'lost', text(now_ms)}
end
local is_new = last == ask.number - 1

-- Who was told of another epoch than this one raises the scores again to what it knows: any of them may have been lost.
-- What a clock that was ahead has left is wrong: no score of before counts then.
local epoch, run, version, latest_ms = unpack(redis.call('HMGET', KEYS[1], 'epoch', 'run', 'version', 'latest_ms'))
local runs = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
version, latest_ms = tonumber(version or 0), tonumber(latest_ms or 0)
local is_back = latest_ms > now_ms + BACK_MS_MAX
if run ~= runs or is_back then
  version = version + 1 -- a clock that goes back may give a time again
  epoch = runs .. '-' .. clock[1] .. '-' .. clock[2] .. '-' .. text(version)
end
local is_known = ask.epoch == epoch

local function score_before(at, key)
  return is_back and 0 or score_of(at, key)
end

local changed = {}
for at, said in ipairs(ask.tables) do
  local scores, order = {}, {}
  local function set(key, score)
    if not scores[key] then
      order[#order + 1] = key
    end
    scores[key] = math.min(score, ask.score_max)
  end
  if is_new then
    for i = 1, #said.floors, 2 do
      if said.floors[i + 1] > score_before(at, said.floors[i]) then
        set(said.floors[i], said.floors[i + 1])
      end
    end
    for i = 1, #said.adds, 2 do
      set(said.adds[i], (scores[said.adds[i]] or score_before(at, said.adds[i])) + faded(said.adds[i + 1], ask.age_ms))
    end
  end
  changed[at] = {scores = scores, order = order}
end

for at, said in ipairs(ask.tables) do
  local scores, order = KEYS[2 * at + 1], KEYS[2 * at + 2]
  if is_back then
    redis.call('DEL', scores, order)
  end
  for _, key in ipairs(changed[at].order) do
    version = version + 1
    redis.call('HSET', scores, key, text(changed[at].scores[key]) .. '|' .. text(now_ms))
    redis.call('ZADD', order, text(version), key)
  end
  -- What was touched longest ago goes first: what has faded, and what there is no room for.
  local over = redis.call('ZCARD', order) - said.keys_max
  for i, key in ipairs(redis.call('ZRANGE', order, 0, math.max(over, 16) - 1)) do
    if i <= over or score_of(at, key) < ask.faded then
      redis.call('HDEL', scores, key)
      redis.call('ZREM', order, key)
    end
  end
  redis.call('EXPIRE', scores, ask.keep_s)
  redis.call('EXPIRE', order, ask.keep_s)
end
latest_ms = is_back and now_ms or math.max(latest_ms, now_ms)
redis.call('HSET', KEYS[1], 'epoch', epoch, 'run', runs, 'version', text(version), 'latest_ms', text(latest_ms))
redis.call('EXPIRE', KEYS[1], ask.keep_s)
redis.call('SET', KEYS[2], text(ask.number), 'EX', ask.keep_s)

local answer = {'ok', text(now_ms), epoch}
for at, said in ipairs(ask.tables) do
  local since = is_known and said.since or 0
  local found = redis.call('ZRANGEBYSCORE', KEYS[2 * at + 2], '(' .. text(since), '+inf', 'WITHSCORES', 'LIMIT', 0, ask.answer_max)
  answer[#answer + 1] = tostring(#found / 2)
  for i = 1, #found, 2 do
    answer[#answer + 1] = found[i]
    answer[#answer + 1] = text(score_of(at, found[i]))
    answer[#answer + 1] = found[i + 1]
  end
end
return answer
