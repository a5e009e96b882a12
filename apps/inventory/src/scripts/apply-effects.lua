-- Applies what MySQL decided to the attempts of one bucket. Idempotent by attempt; what Redis does not know gets no
-- credit, because units that were never taken from here must not come back here.
-- KEYS  1 account  2 attempts  3 shoppers  4 deadlines
-- ARGV  1 epoch; then 3 per effect: tail, 'confirm' or 'void', reason
-- Reply {'GONE'} | {'EPOCH', epoch} | {'FROZEN', how} | {'OK', units that became free, item…}, an item being
--       {'APPLIED'} | {'ALREADY'} | {'MISSING'} | {'VOID_BEFORE', its reason}
--@include "include/attempt.lua"
--@include "include/account.lua"
--@include "include/decided.lua"

local account, refusal = read_account(KEYS[1], ARGV[1])
if not account then return refusal end
redis.call('ZCARD', KEYS[4])
local balances = { free = account.free, held = account.held, queued = account.queued, sold = account.sold }
local attempts = {}
local usage_of, usages = usages_in(KEYS[3])

local function attempt_of(tail)
  if attempts[tail] == nil then
    local text = redis.call('HGET', KEYS[2], tail)
    attempts[tail] = text and not alias_target(text) and unpack_attempt(text) or false
  end
  return attempts[tail]
end

local function apply(tail, kind, reason)
  local a = attempt_of(tail)
  if not a then return { 'MISSING' } end
  if a.state == 'V' then return kind == 'void' and { 'ALREADY' } or { 'VOID_BEFORE', a.reason } end
  if a.state == 'C' and kind == 'confirm' then return { 'ALREADY' } end
  local usage = usage_of(a.shopper)
  local from = COUNTER[a.state]
  local to = kind == 'confirm' and 'sold' or 'free'
  balances[from] = balances[from] - a.quantity
  balances[to] = balances[to] + a.quantity
  if kind == 'void' then usage.used = usage.used - a.quantity end
  if usage.live == tail then usage.live = '' end
  a.state = kind == 'confirm' and 'C' or 'V'
  a.reason = kind == 'confirm' and '' or reason
  a.changed = true
  return { 'APPLIED' }
end

local results = {}
for at = 2, #ARGV, 3 do results[#results + 1] = apply(ARGV[at], ARGV[at + 1], ARGV[at + 2]) end
check_balances(balances)
for shopper, usage in pairs(usages) do check_balances({ [shopper] = usage.used }) end

for tail, a in pairs(attempts) do
  if a and a.changed then
    redis.call('HSET', KEYS[2], tail, pack_attempt(a))
    redis.call('ZREM', KEYS[4], tail)
  end
end
for shopper, usage in pairs(usages) do
  redis.call('HSET', KEYS[3], shopper, pack_usage(usage.used, usage.live))
end
for name, value in pairs(balances) do
  if value ~= account[name] then redis.call('HSET', KEYS[1], name, value) end
end
return { 'OK', tostring(balances.free - account.free), unpack(results) }
