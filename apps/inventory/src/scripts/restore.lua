-- Makes the records of attempts what MySQL's rows say. An item is done only where the record is still as the caller has seen
-- it, so that nothing which happened since is undone, and a repetition does nothing.
-- Units that a bucket should have sold but does not have free count as its own from now on: the sale has one too many then,
-- which the reconciler takes back where some are free.
-- KEYS  1 account  2 attempts  3 shoppers  4 deadlines  5 holders  6 transfers
-- ARGV  1 epoch  2 what the bucket must be: 0 in use, 1 frozen; then 8 per item: id of the correction or '', tail, the record
--       as seen ('' for none, or an alias), the record to be, the shopper's 4 positions in the holder filter
-- Reply {'GONE'} | {'EPOCH', epoch} | {'FROZEN', how} | {'OK', units that became free, item…}, an item being
--       {'RESTORED', units} | {'ALREADY', units} by this id before | {'CHANGED'}
--@include "include/attempt.lua"
--@include "include/account.lua"
--@include "include/decided.lua"

local ITEM = 8

local account, refusal = read_any_account(KEYS[1], ARGV[1])
if not account then return refusal end
if account.moved then return { 'MOVED' } end
if (account.frozen or 0) ~= tonumber(ARGV[2]) then return { 'FROZEN', tostring(account.frozen or 0) } end
redis.call('ZCARD', KEYS[4])
redis.call('GETBIT', KEYS[5], 0)
local balances = { free = account.free, held = account.held, queued = account.queued, sold = account.sold, initial = 0 }
local written, done, bits, grants = {}, {}, {}, 0
local usage_of, usages = usages_in(KEYS[3])

local function restore(id, tail, seen, record, at)
  local before = id ~= '' and redis.call('HGET', KEYS[6], 'c:' .. id)
  if before then return { 'ALREADY', string.match(before, '^fix|(%-?%d+)') } end
  local text = written[tail] or redis.call('HGET', KEYS[2], tail)
  if (text and not alias_target(text) and text or '') ~= seen then return { 'CHANGED' } end
  local old, new = seen ~= '' and unpack_attempt(seen) or nil, unpack_attempt(record)
  local usage, units = usage_of(new.shopper), new.quantity
  local from, to = old and COUNTER[old.state], COUNTER[new.state]
  if from then
    balances[from] = balances[from] - old.quantity
    balances.free = balances.free + old.quantity
    usage.used = usage.used - old.quantity
  end
  if to then
    local short = math.max(0, units - balances.free)
    balances.initial = balances.initial + short
    balances.free = balances.free + short - units
    balances[to] = balances[to] + units
    usage.used = usage.used + units
    for position = at + 4, at + 7 do
      for _, word in ipairs({ 'SET', 'u1', ARGV[position], '1' }) do bits[#bits + 1] = word end
    end
    grants = grants + 1
  end
  if usage.live == tail then usage.live = '' end
  written[tail] = record
  if id ~= '' then
    done[#done + 1] = 'c:' .. id
    done[#done + 1] = string.format('fix|%d', units)
  end
  return { 'RESTORED', tostring(units) }
end

local results = {}
for at = 3, #ARGV, ITEM do
  results[#results + 1] = restore(ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], at)
end
check_balances(balances)
for shopper, usage in pairs(usages) do check_balances({ [shopper] = usage.used }) end

for tail, record in pairs(written) do
  redis.call('HSET', KEYS[2], tail, record)
  redis.call('ZREM', KEYS[4], tail)
end
for shopper, usage in pairs(usages) do redis.call('HSET', KEYS[3], shopper, pack_usage(usage.used, usage.live)) end
if #bits > 0 then redis.call('BITFIELD', KEYS[5], unpack(bits)) end
if #done > 0 then redis.call('HSET', KEYS[6], unpack(done)) end
for name, value in pairs({ free = balances.free, held = balances.held, queued = balances.queued, sold = balances.sold }) do
  if value ~= account[name] then redis.call('HSET', KEYS[1], name, value) end
end
if balances.initial > 0 then redis.call('HINCRBY', KEYS[1], 'initial', balances.initial) end
if grants > 0 then redis.call('HINCRBY', KEYS[1], 'grants', grants) end
return { 'OK', tostring(math.max(0, balances.free - account.free)), unpack(results) }
