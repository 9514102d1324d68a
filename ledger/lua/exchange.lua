-- One exchange between a replica and the shared book: it tells what it has spent and gives back, and is told what it may
-- spend from now on. ARGV: JSON, and the run of the server on which this shard was found to be new to all replicas. KEYS: the shard's state, this replica's index of counters, its last answer, then one
-- hash per counter. All is read and checked before anything is written, so that an error leaves everything as it was.
--
-- state     epoch, run (of the server that the epoch began on), opened (new to all replicas when it began), forgetful
--           (the server was once seen not to sync its writes), and per replica: serial, joined, seen
-- counter   epoch, gen (of the last recall) and gen_ms, and per replica: a (the recall it has answered), and for each
--           cell g (what is debited for it: its lease, or what it uses where that is more) and s (what it has spent)
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
local is_born = ARGV[2] == run
if not state.epoch or (state.run ~= run and (ask.durable == 0 or state.forgetful)) then
  -- Named by the server: a late repetition from before must not be able to begin an old epoch again.
  local epoch = run .. '-' .. clock[1] .. '-' .. clock[2]
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], 'epoch', epoch, 'run', run)
  if is_born then
    redis.call('HSET', KEYS[1], 'opened', 1)
  end
  return {'join', text(now_ms), epoch, ''}
end
if state.run ~= run then
  redis.call('HSET', KEYS[1], 'run', run)
end
local serial = state['serial|' .. me] or ''
if ask.epoch ~= state.epoch or (not state['joined|' .. me] and not ask.join) then
  if is_born then
    redis.call('HSET', KEYS[1], 'opened', 1)
  end
  local answer = {'join', text(now_ms), state.epoch, serial}
  for _, counter in ipairs(redis.call('SMEMBERS', KEYS[2])) do
    answer[#answer + 1] = counter
  end
  return answer
end

-- A repeated exchange changes nothing and has the same answer; one that another overtook has none.
if serial == ask.serial then
  local answer = redis.call('GET', KEYS[3])
  if answer then
    return cjson.decode(answer)
  end
end
if serial ~= ask.after then
  return {'stale', text(now_ms), state.epoch, serial}
end

local members, joined = 0, 0
local is_live = {}
for name, value in pairs(state) do
  local kind, replica = string.match(name, '^(%a+)|(.*)$')
  if kind == 'joined' then
    joined = joined + 1
  elseif kind == 'seen' and now_ms - tonumber(value) < ask.live_ms then
    members = members + 1
    is_live[replica] = true
  end
end
if ask.is_last and not state['joined|' .. me] then
  joined = joined + 1
end
if not is_live[me] then
  members = members + 1
end
-- Nothing can be spent of a shard that no replica knew: it need not wait for all of them.
local is_open = joined >= ask.replicas or state.opened == '1'
local is_summed = is_open and not ask.join

local function blank()
  return {g = {}, s = {}, a = {}, gen = 0, gen_ms = 0, told = {}, dropped = {}}
end

local function read(key)
  local counter = blank()
  local fields = redis.call('HGETALL', key)
  for i = 1, #fields, 2 do
    local name, value = fields[i], fields[i + 1]
    local kind, cell, replica = string.match(name, '^([gs])|(%d+)|(.*)$')
    if kind then
      counter[kind][cell] = counter[kind][cell] or {}
      counter[kind][cell][replica] = tonumber(value)
    elseif string.sub(name, 1, 2) == 'a|' then
      counter.a[string.sub(name, 3)] = tonumber(value)
    elseif name == 'epoch' then
      counter.epoch = value
    else
      counter[name] = tonumber(value)
    end
  end
  if counter.epoch and counter.epoch ~= state.epoch then
    counter = blank()
    counter.is_stale = true
  end
  return counter
end

local function of(cells, cell)
  cells[cell] = cells[cell] or {}
  return cells[cell]
end

local function counts(line, cell)
  if line.span_s > 0 then
    return tonumber(cell) + line.span_s > now_s
  end
  return tonumber(cell) >= line.from_s
end

local function is_old(line, cell)
  if line.span_s > 0 then
    return not counts(line, cell)
  end
  return tonumber(cell) < line.old_s
end

-- How many replicas that have something unused have not yet answered the last recall.
local function pending(counter, sums)
  local count = 0
  for replica in pairs(sums.unused) do
    if (counter.a[replica] or 0) < counter.gen then
      count = count + 1
    end
  end
  return count
end

local function spent_by_me(line, counter)
  local spent = 0
  for cell, spents in pairs(counter.s) do
    if counts(line, cell) then
      spent = spent + (spents[me] or 0)
    end
  end
  return spent
end

-- What this replica says of its own cells, taken into what is known, and what it had spent by that until now. What it has
-- spent since is summed only once all replicas have joined, so that a threshold is seen by the one exchange that crosses
-- it; where nothing is known of a cell, what was reported of it before is not seen again.
local function tell(line, counter)
  local told = counter.told
  for _, said in ipairs(line.cells) do
    local cell, reported, used, keeps = text(said[1]), said[2], said[4], said[5]
    local leases, spents = of(counter.g, cell), of(counter.s, cell)
    if not ask.join then
      keeps = math.min(keeps, leases[me] or 0)
    end
    leases[me] = math.max(keeps, used)
    spents[me] = spents[me] or reported
    told[cell] = true
  end
  if line.whole then
    for _, kind in ipairs({'g', 's'}) do
      for cell, values in pairs(counter[kind]) do
        if values[me] and not told[cell] then
          values[me] = nil
          counter.dropped[#counter.dropped + 1] = kind .. '|' .. cell .. '|' .. me
        end
      end
    end
  end
  local before = spent_by_me(line, counter)
  if is_summed then
    for _, said in ipairs(line.cells) do
      counter.s[text(said[1])][me] = said[3]
    end
  end
  return before
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
  local counter = read(KEYS[i + 3])
  local before = tell(line, counter)
  local sums = sum(line, counter)
  local leases = of(counter.g, text(line.from_s))
  local used = #line.cells > 0 and line.cells[#line.cells][4] or 0
  -- Where more is debited than there is, by an overage or under a lower limit, nothing may lie idle.
  local is_over = line.hard and sums.debited > line.limit and (leases[me] or 0) > used
  local give, last, seen = 0, counter.gen, line.gen
  if seen < 0 or seen > last then
    seen = last
  end
  if line.hard and is_summed then
    -- A replica whose clock is ahead must wait until the window that it asks for has begun.
    local has_begun = line.from_s <= tonumber(clock[1]) + 1
    local free = has_begun and math.max(0, line.limit - sums.debited) or 0
    -- Who was just asked to give back takes nothing again that is less than it needs: others wait for it.
    give = (line.tight and free < line.need) and 0 or math.min(line.need, free)
    -- Unless one is under way, a recall is opened for whoever has seen none through since it first asked.
    if give < line.need and next(sums.unused) and seen == last and pending(counter, sums) == 0 then
      counter.gen, counter.gen_ms = counter.gen + 1, now_ms
      published[#published + 1] = line.name
    end
    if now_ms - counter.gen_ms >= ask.calm_ms then
      -- Beyond what is needed now each gets less the less is left, so that little lies idle where it is not wanted.
      give = give + math.min(line.want, math.floor((free - give) / (2 * members)))
    end
    leases[me] = (leases[me] or 0) + give
    sums.debited, sums.mine_debited = sums.debited + give, sums.mine_debited + give
  end
  if line.tight or give < line.need then
    counter.a[me] = counter.gen
  end
  counters[i] = counter
  answer[#answer + 1] = text(leases[me] or 0)
  answer[#answer + 1] = text(sums.spent - sums.mine_spent)
  answer[#answer + 1] = text(sums.debited - sums.mine_debited - (sums.spent - sums.mine_spent))
  answer[#answer + 1] = text(sums.stranded)
  answer[#answer + 1] = text(before)
  answer[#answer + 1] = text(sums.mine_spent)
  answer[#answer + 1] = tostring(pending(counter, sums))
  answer[#answer + 1] = text(last)
  local is_recalled = (counter.a[me] or 0) < counter.gen and sums.mine_debited > sums.mine_spent
  answer[#answer + 1] = (is_recalled or is_over) and '1' or '0'
end

local function write(key, line, counter)
  local fields = {'epoch', state.epoch, 'gen', text(counter.gen), 'gen_ms', text(counter.gen_ms)}
  fields[#fields + 1], fields[#fields + 2] = 'a|' .. me, text(counter.a[me] or 0)
  local gone, is_mine = counter.dropped, false
  for _, kind in ipairs({'g', 's'}) do
    for cell, values in pairs(counter[kind]) do
      for replica, value in pairs(values) do
        if is_old(line, cell) then
          gone[#gone + 1] = kind .. '|' .. cell .. '|' .. replica
        elseif replica == me then
          is_mine = is_mine or value ~= 0
          if counter.told[cell] then
            fields[#fields + 1], fields[#fields + 2] = kind .. '|' .. cell .. '|' .. me, text(value)
          end
        end
      end
    end
  end
  redis.call('HSET', key, unpack(fields))
  for first = 1, #gone, 100 do
    redis.call('HDEL', key, unpack(gone, first, math.min(first + 99, #gone)))
  end
  if line.ttl_s > 0 then
    redis.call('EXPIRE', key, text(line.ttl_s))
  end
  redis.call(is_mine and 'SADD' or 'SREM', KEYS[2], line.name)
end

for i, line in ipairs(ask.lines) do
  local key, counter = KEYS[i + 3], counters[i]
  if counter.is_stale then
    redis.call('DEL', key)
  end
  if #line.cells > 0 or counter.epoch then
    write(key, line, counter)
  else
    redis.call('SREM', KEYS[2], line.name)
  end
end
redis.call('SET', KEYS[3], cjson.encode(answer))
redis.call('HSET', KEYS[1], 'serial|' .. me, ask.serial, 'seen|' .. me, text(now_ms))
if ask.durable == 0 and not state.forgetful then
  redis.call('HSET', KEYS[1], 'forgetful', '1')
end
if ask.is_last then
  redis.call('HSET', KEYS[1], 'joined|' .. me, '1')
end
-- Others hear who speaks, what is needed back, and whether an epoch is being joined: they must join it too.
if ask.is_last then
  redis.call('PUBLISH', ask.channel, cjson.encode({me, published, 'joined'}))
elseif #published > 0 then
  redis.call('PUBLISH', ask.channel, cjson.encode({me, published}))
elseif ask.returns then
  redis.call('PUBLISH', ask.channel, cjson.encode({me}))
end
return answer
