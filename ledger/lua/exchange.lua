-- One exchange between a replica and the shared book: it tells what it has spent and gives back, and is told what it may
-- spend from now on. KEYS: the shard's state, this replica's index of counters, then one hash per counter. ARGV: JSON.
-- All is read and checked before anything is written, so that an error leaves everything as it was.
--
-- state     epoch, run (of the server that the epoch began on), and per replica: serial, joined, seen
-- counter   epoch, gen and gen_ms of the last recall, and per replica: a (the recall it has answered), and for each cell
--           g (its lease) and s (what it has spent of it); what counts against the limit is the larger of the two
-- Numbers are whole and below 2^53, and are written with all their digits.

local ask = cjson.decode(ARGV[1])
local me = ask.replica
local clock = redis.call('TIME')
local now_ms = clock[1] * 1000 + math.floor(clock[2] / 1000)
-- Of the two clocks the one behind: by it more cells of a rolling window still count.
local now_s = math.min(tonumber(clock[1]), ask.now_s)

local function text(number)
  return string.format('%.0f', number)
end

local state = {}
local flat = redis.call('HGETALL', KEYS[1])
for i = 1, #flat, 2 do
  state[flat[i]] = flat[i + 1]
end

-- A server that restarted may have forgotten its last writes unless it syncs each of them: then what it still knows must
-- not be believed either, and a new epoch begins with nothing.
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
if not state.epoch or (state.run ~= run and ask.durable == 0) then
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], 'epoch', ask.fresh, 'run', run)
  return {'join', text(now_ms), ask.fresh, ''}
end
if state.run ~= run then
  redis.call('HSET', KEYS[1], 'run', run)
end
local serial = state['serial|' .. me] or ''
if ask.epoch ~= state.epoch or (not state['joined|' .. me] and not ask.join) then
  local answer = {'join', text(now_ms), state.epoch, serial}
  for _, counter in ipairs(redis.call('SMEMBERS', KEYS[2])) do
    answer[#answer + 1] = counter
  end
  return answer
end

-- A repeated exchange changes nothing and is answered with how things stand; one that another overtook is not answered.
local is_repeat = serial == ask.serial
if not is_repeat and serial ~= ask.after then
  return {'stale', text(now_ms), state.epoch, serial}
end

local members, joined = 0, 0
local is_live = {}
for name, value in pairs(state) do
  local kind, replica = string.match(name, '^(%a+)|(.*)$')
  if kind == 'joined' then
    joined = joined + 1
  elseif kind == 'seen' and (replica == me or now_ms - tonumber(value) < ask.live_ms) then
    members = members + 1
    is_live[replica] = true
  end
end
if ask.join and ask.is_last and not state['joined|' .. me] then
  joined = joined + 1
end
if not is_live[me] then
  members = members + 1
end
local is_open = joined >= ask.replicas

local function read(key)
  local counter = {g = {}, s = {}, a = {}, gen = 0, gen_ms = 0}
  local fields = redis.call('HGETALL', key)
  for i = 1, #fields, 2 do
    local name, value = fields[i], fields[i + 1]
    local kind, cell, replica = string.match(name, '^(%a)|(%d+)|(.*)$')
    if kind then
      counter[kind][cell] = counter[kind][cell] or {}
      counter[kind][cell][replica] = tonumber(value)
    elseif name == 'epoch' then
      counter.epoch = value
    else
      counter[name] = tonumber(value)
    end
  end
  if counter.epoch and counter.epoch ~= state.epoch then
    return {g = {}, s = {}, a = {}, gen = 0, gen_ms = 0, is_stale = true}
  end
  return counter
end

local function of(cells, cell)
  cells[cell] = cells[cell] or {}
  return cells[cell]
end

-- What this replica says of its own cells, taken into what is known.
local function tell(line, counter)
  if ask.join then
    for cell, leases in pairs(counter.g) do
      if leases[me] then
        leases[me] = of(counter.s, cell)[me] or 0
      end
    end
  end
  for _, said in ipairs(line.cells) do
    local cell = text(said[1])
    local leases, spents = of(counter.g, cell), of(counter.s, cell)
    local spent, keeps = said[2], said[3]
    if not ask.join and not line.force then
      keeps = math.min(keeps, leases[me] or 0)
    end
    spents[me], leases[me] = spent, math.max(keeps, spent)
  end
end

local function counts(line, cell)
  if line.span_s > 0 then
    return tonumber(cell) + line.span_s > now_s
  end
  return tonumber(cell) == line.from_s
end

-- How many replicas that have something unused have not yet answered the last recall.
local function pending(counter, sums)
  local count, answered = 0, of(counter.a, '0')
  for replica in pairs(sums.unused) do
    if (answered[replica] or 0) < counter.gen then
      count = count + 1
    end
  end
  return count
end

-- The sums over the cells that count: spent and debited by anyone, what is stranded, and what others might give back.
local function sum(line, counter)
  local sums = {spent = 0, debited = 0, mine_spent = 0, mine_debited = 0, stranded = 0, unused = {}}
  local cells = {}
  for cell in pairs(counter.g) do cells[cell] = true end
  for cell in pairs(counter.s) do cells[cell] = true end
  for cell in pairs(cells) do
    if counts(line, cell) then
      local leases, spents = of(counter.g, cell), of(counter.s, cell)
      local replicas = {}
      for replica in pairs(leases) do replicas[replica] = true end
      for replica in pairs(spents) do replicas[replica] = true end
      for replica in pairs(replicas) do
        local spent = spents[replica] or 0
        local debited = math.max(leases[replica] or 0, spent)
        sums.spent, sums.debited = sums.spent + spent, sums.debited + debited
        if replica == me then
          sums.mine_spent, sums.mine_debited = sums.mine_spent + spent, sums.mine_debited + debited
        elseif debited > spent then
          if is_live[replica] then
            sums.unused[replica] = true
          else
            sums.stranded = sums.stranded + debited - spent
          end
        end
      end
    end
  end
  return sums
end

local counters, answer, published = {}, {'ok', text(now_ms), is_open and '1' or '0', tostring(members)}, {}
for i, line in ipairs(ask.lines) do
  local key = KEYS[i + 2]
  local counter = read(key)
  if not is_repeat then
    tell(line, counter)
  end
  local sums = sum(line, counter)
  if not is_repeat and line.hard and is_open and not ask.join then
    local free = math.max(0, line.limit - sums.debited)
    local give = math.min(line.need, free)
    -- Who has not seen the last recall through opens another, unless one is under way.
    if give < line.need and next(sums.unused) and line.gen ~= counter.gen and pending(counter, sums) == 0 then
      counter.gen, counter.gen_ms = counter.gen + 1, now_ms
      published[#published + 1] = line.name
    end
    if now_ms - counter.gen_ms >= ask.calm_ms then
      -- Beyond what is needed now each gets less the less is left, so that little lies idle where it is not wanted.
      give = give + math.min(line.want, math.floor((free - give) / (2 * members)))
    end
    local leases = of(counter.g, text(line.from_s))
    leases[me] = (leases[me] or 0) + give
    sums.debited, sums.mine_debited = sums.debited + give, sums.mine_debited + give
  end
  local answered = of(counter.a, '0')
  if line.tight and not is_repeat then
    answered[me] = counter.gen
  end
  counters[i] = counter
  answer[#answer + 1] = text(of(counter.g, text(line.from_s))[me] or 0)
  answer[#answer + 1] = text(sums.spent - sums.mine_spent)
  answer[#answer + 1] = text(sums.debited - sums.mine_debited - (sums.spent - sums.mine_spent))
  answer[#answer + 1] = text(sums.stranded)
  answer[#answer + 1] = tostring(pending(counter, sums))
  answer[#answer + 1] = text(counter.gen)
  answer[#answer + 1] = (answered[me] or 0) < counter.gen and '1' or '0'
end
if is_repeat then
  return answer
end

for i, line in ipairs(ask.lines) do
  local key, counter = KEYS[i + 2], counters[i]
  if counter.is_stale then
    redis.call('DEL', key)
  end
  local set, gone = {'epoch', state.epoch, 'gen', text(counter.gen), 'gen_ms', text(counter.gen_ms)}, {}
  set[#set + 1], set[#set + 2] = 'a|0|' .. me, text(counter.a['0'][me] or 0)
  for _, kind in ipairs({'g', 's'}) do
    for cell, values in pairs(counter[kind]) do
      local is_old = line.span_s > 0 and not counts(line, cell) or tonumber(cell) < line.from_s and line.span_s == 0
      for replica, value in pairs(values) do
        if is_old then
          gone[#gone + 1] = kind .. '|' .. cell .. '|' .. replica
        elseif replica == me then
          set[#set + 1], set[#set + 2] = kind .. '|' .. cell .. '|' .. me, text(value)
        end
      end
    end
  end
  redis.call('HSET', key, unpack(set))
  for first = 1, #gone, 100 do
    redis.call('HDEL', key, unpack(gone, first, math.min(first + 99, #gone)))
  end
  if line.ttl_s > 0 then
    redis.call('EXPIRE', key, text(line.ttl_s))
  end
  redis.call('SADD', KEYS[2], line.name)
end
redis.call('HSET', KEYS[1], 'serial|' .. me, ask.serial, 'seen|' .. me, text(now_ms))
if ask.join and ask.is_last then
  redis.call('HSET', KEYS[1], 'joined|' .. me, '1')
end
if #published > 0 or ask.is_last then
  redis.call('PUBLISH', ask.channel, cjson.encode({me, published}))
elseif ask.returns then
  redis.call('PUBLISH', ask.channel, cjson.encode({me}))
end
return answer
