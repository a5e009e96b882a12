-- Shared by the scripts of the line. The including script has set the locals GATE, PLACES, ENTRIES and SHOPPERS.

-- No key of a line is needed this long after its last call.
local KEEP_SECONDS = 30 * 24 * 3600
-- Bounds what one call does when very many may be admitted at once; the next call admits the rest.
local MAX_ADMITTED_PER_CALL = 1000

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- The entry behind a tail, or behind the tail that it is another name of; nil when there is none.
local function entry_of(tail)
  local value = redis.call('HGET', ENTRIES, tail)
  if value and string.sub(value, 1, 2) == '@|' then
    tail = string.sub(value, 3)
    value = redis.call('HGET', ENTRIES, tail)
  end
  if not value then
    return nil
  end
  local parts = {}
  for part in string.gmatch(value .. '|', '([^|]*)|') do
    parts[#parts + 1] = part
  end
  return {
    tail = tail,
    kind = parts[1],
    shopper = parts[2],
    quantity = parts[3],
    state = parts[4],
    reason = parts[5],
  }
end

local function end_entry(entry, state, reason)
  redis.call('ZREM', PLACES, entry.tail)
  redis.call('HSET', ENTRIES, entry.tail, table.concat({ 'E', entry.shopper, entry.quantity, state, reason }, '|'))
  if redis.call('HGET', SHOPPERS, entry.shopper) == entry.tail then
    redis.call('HDEL', SHOPPERS, entry.shopper)
  end
  entry.kind, entry.state, entry.reason = 'E', state, reason
end

-- How far the line has come, as texts: since when there is this line (ms), how many it ever let through, and the number of
-- arrival of the last of them. Numbers grow and the lowest goes first, so who has a higher one waits, unless they left.
local function progress()
  local gate = redis.call('HMGET', GATE, 'bornMs', 'admitted', 'admittedTo')
  return { gate[1] or '0', gate[2] or '0', gate[3] or '0' }
end

-- Lets through as many from the head as the token bucket has credit for: `rate` a second, by the clock of Redis, with at
-- most one second's worth saved up, because the line moves only when somebody asks.
local function admit(rate, now)
  local gate = redis.call('HMGET', GATE, 'credit', 'atMs', 'stalledUntilMs')
  local credit = tonumber(gate[1] or '1')
  local elapsed = math.max(0, now - tonumber(gate[2] or now))
  credit = math.min(math.max(rate, 1), credit + elapsed * rate / 1000)
  local count = math.min(math.floor(credit), MAX_ADMITTED_PER_CALL)
  if count > 0 and now >= tonumber(gate[3] or 0) then
    local heads = redis.call('ZPOPMIN', PLACES, count)
    for i = 1, #heads, 2 do
      local entry = entry_of(heads[i])
      redis.call('HSET', ENTRIES, heads[i], table.concat({ 'A', entry.shopper, entry.quantity }, '|'))
    end
    credit = credit - #heads / 2
    if #heads > 0 then
      redis.call('HINCRBY', GATE, 'admitted', #heads / 2)
      redis.call('HSET', GATE, 'admittedTo', heads[#heads])
    end
  end
  redis.call('HSETNX', GATE, 'bornMs', string.format('%.0f', now))
  redis.call('HSET', GATE, 'credit', string.format('%.3f', credit), 'atMs', string.format('%.0f', now))
  for _, key in ipairs({ GATE, PLACES, ENTRIES, SHOPPERS }) do
    redis.call('EXPIRE', key, KEEP_SECONDS)
  end
end

-- While Stock says that everything is gone nobody is kept waiting for it.
local function sold_out_now(now)
  return now < tonumber(redis.call('HGET', GATE, 'soldOutUntilMs') or 0)
end

-- What is answered about an entry: {'waiting', tail, position, created, number of arrival, bornMs, admitted},
-- {'admitted', tail, quantity, created} or {'ended', tail, state, reason}.
local function standing(entry, created, sold_out)
  if entry.kind == 'W' and sold_out then
    end_entry(entry, 'sold_out', '')
  end
  if entry.kind == 'W' then
    local rank = redis.call('ZRANK', PLACES, entry.tail)
    local line = progress()
    -- A waiting entry has its number where others have their state.
    return { 'waiting', entry.tail, tostring(rank + 1), created, entry.state, line[1], line[2] }
  elseif entry.kind == 'A' then
    return { 'admitted', entry.tail, entry.quantity, created }
  end
  return { 'ended', entry.tail, entry.state, entry.reason }
end
