--@include "attempt.lua"
--@include "account.lua"
--@include "shopper.lua"

-- Grants a batch: shared by grant.lua and transfer-in.lua, so that both decide alike.
-- An item is 7 arguments: tail, shopper, quantity and the shopper's four positions in the holder filter.
local ITEM = 7

-- Reads what the items from ARGV[first] on need, and decides them one after another on running balances: what an earlier
-- item of the batch was given is gone for a later one, and an attempt that comes twice is known the second time.
-- `account.free` runs down. Returns the results and the plan of what to write; writes nothing itself.
local function decide_grants(keys, account, now, first)
  local plan = { attempts = {}, shoppers = {}, deadlines = {}, bits = {}, units = 0, count = 0 }
  local tails, names = {}, {}
  for at = first, #ARGV, ITEM do
    tails[#tails + 1] = ARGV[at]
    names[#names + 1] = ARGV[at + 1]
  end
  if #tails == 0 then return {}, plan end
  local found = redis.call('HMGET', keys.attempts, unpack(tails))
  local usages = redis.call('HMGET', keys.shoppers, unpack(names))
  -- Keys of a wrong type must show before anything is written.
  redis.call('ZCARD', keys.deadlines)
  redis.call('GETBIT', keys.holders, 0)

  local records, used, live = {}, {}, {}
  for i, tail in ipairs(tails) do
    records[tail] = found[i]
    used[names[i]], live[names[i]] = unpack_usage(usages[i])
  end
  local function record_of(tail)
    if records[tail] == nil then records[tail] = redis.call('HGET', keys.attempts, tail) end
    return records[tail]
  end
  local function remember(tail, text)
    records[tail] = text
    plan.attempts[#plan.attempts + 1] = tail
    plan.attempts[#plan.attempts + 1] = text
  end

  local function decide(tail, shopper, quantity, at)
    local text = record_of(tail)
    if text then
      local first_tail = alias_target(text)
      if first_tail then tail, text = first_tail, record_of(first_tail) end
      local known = unpack_attempt(text)
      if known.shopper ~= shopper or known.quantity ~= quantity then return { 'MISMATCH' } end
      return { 'KNOWN', tail, text }
    end
    if account.gateVersion == 0 then return { 'NOT_OPEN' } end
    if account.closed == 1 or now >= account.closesAtMs then return { 'CLOSED' } end
    if account.paused == 1 then return { 'PAUSED' } end
    if now < account.opensAtMs then return { 'NOT_OPEN' } end
    if live[shopper] ~= '' then
      local entry = record_of(live[shopper])
      if unpack_attempt(entry).quantity ~= quantity then return { 'ENTRY_EXISTS' } end
      remember(tail, '@|' .. live[shopper])
      return { 'KNOWN', live[shopper], entry }
    end
    if quantity < 1 or used[shopper] + quantity > account.limit then return { 'LIMIT' } end
    if account.free < quantity then return { 'EMPTY', tostring(account.free) } end

    account.free = account.free - quantity
    used[shopper] = used[shopper] + quantity
    live[shopper] = tail
    local deadline = now + account.holdMs
    local granted = pack_attempt({
      state = 'H', shopper = shopper, quantity = quantity, deadline = deadline, delivery = '', partition = '',
      offset = '', reason = '', granted = now, epoch = account.epoch,
    })
    remember(tail, granted)
    plan.shoppers[#plan.shoppers + 1] = shopper
    plan.shoppers[#plan.shoppers + 1] = pack_usage(used[shopper], tail)
    plan.deadlines[#plan.deadlines + 1] = deadline
    plan.deadlines[#plan.deadlines + 1] = tail
    for position = at + 3, at + 6 do
      for _, word in ipairs({ 'SET', 'u1', ARGV[position], '1' }) do plan.bits[#plan.bits + 1] = word end
    end
    plan.units = plan.units + quantity
    plan.count = plan.count + 1
    return { 'GRANTED', tail, granted }
  end

  local results = {}
  for i, tail in ipairs(tails) do
    local at = first + (i - 1) * ITEM
    results[i] = decide(tail, ARGV[at + 1], tonumber(ARGV[at + 2]), at)
  end
  return results, plan
end

-- Writes a plan; the caller has decided everything.
local function write_grants(keys, plan)
  if #plan.attempts > 0 then redis.call('HSET', keys.attempts, unpack(plan.attempts)) end
  if plan.count == 0 then return end
  redis.call('HINCRBY', keys.account, 'free', -plan.units)
  redis.call('HINCRBY', keys.account, 'held', plan.units)
  redis.call('HINCRBY', keys.account, 'grants', plan.count)
  redis.call('HSET', keys.shoppers, unpack(plan.shoppers))
  redis.call('ZADD', keys.deadlines, unpack(plan.deadlines))
  redis.call('BITFIELD', keys.holders, unpack(plan.bits))
end
