-- What an operator asks about one replica in one shard, and tells of it. ARGV: the step, the replica, its fence.
-- KEYS: the shard's state; then counters, or at `end` the replica's last answer. It writes as `exchange.lua` reads.
--
-- look    of each counter the cells in which more is debited for it than it has spent: cell, how much, cell, …
-- fence   no exchange that it has sent so far is taken any more; nothing when it was seen less than ARGV[4] ms ago
-- free    as look, and no more is debited for it than it has spent; nothing unless the fence still stands
-- end     it is not listed any more; nothing unless the fence still stands

local step, me, fence = ARGV[1], ARGV[2], ARGV[3]
local epoch, seen, serial = unpack(redis.call('HMGET', KEYS[1], 'epoch', 'seen|' .. me, 'serial|' .. me))

-- The exchanges under way go by the serial before them, and so does who repeats one: all are answered `stale`. A replica
-- that comes back is told this serial when it joins, and goes on from it. It stays joined: what it had told still counts.
if step == 'fence' then
  local clock = redis.call('TIME')
  local now_ms = clock[1] * 1000 + math.floor(clock[2] / 1000)
  if not seen or now_ms - tonumber(seen) < tonumber(ARGV[4]) then
    return false
  end
  redis.call('HSET', KEYS[1], 'serial|' .. me, fence)
  return {}
end

if step ~= 'look' and serial ~= fence then
  return false
end
if step == 'end' then
  redis.call('HDEL', KEYS[1], 'seen|' .. me)
  redis.call('DEL', KEYS[2])
  return {}
end

local answer = {}
for i = 2, #KEYS do
  local values, found = {}, {}
  local fields = redis.call('HGETALL', KEYS[i])
  for at = 1, #fields, 2 do
    values[fields[at]] = fields[at + 1]
  end
  -- One of an earlier epoch counts for nothing.
  if values.epoch == epoch then
    for name, debited in pairs(values) do
      local cell, replica = string.match(name, '^g|(%d+)|(.*)$')
      local spent = replica == me and values['s|' .. cell .. '|' .. me] or '0'
      if replica == me and tonumber(debited) > tonumber(spent) then
        found[#found + 1] = cell
        found[#found + 1] = string.format('%.0f', tonumber(debited) - tonumber(spent))
        if step == 'free' then
          redis.call('HSET', KEYS[i], name, spent)
        end
      end
    end
  end
  answer[i - 1] = found
end
return answer
