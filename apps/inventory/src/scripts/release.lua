-- Gives holds up. The units stay held until the sweeper has made "never an order" durable; it may begin at once.
-- KEYS  1 account  2 attempts  3 deadlines
-- ARGV  1 epoch  2 the sweeper's grace, ms; then 2 per item: tail, shopper
-- Reply {'GONE'} | {'EPOCH', epoch} | {'FROZEN', how} | {'OK', item…}, an item being 'RELEASED' | 'ALREADY_ORDERED' | 'UNKNOWN'
--@include "include/attempt.lua"
--@include "include/account.lua"

local account, refusal = read_account(KEYS[1], ARGV[1])
if not account then return refusal end
local now, grace = now_ms(), tonumber(ARGV[2])
redis.call('ZCARD', KEYS[3])
local released = {}

local function decide(tail, shopper)
  local text = redis.call('HGET', KEYS[2], tail)
  local first_tail = alias_target(text)
  if first_tail then tail, text = first_tail, redis.call('HGET', KEYS[2], first_tail) end
  local a = unpack_attempt(text)
  if not a or a.shopper ~= shopper then return 'UNKNOWN' end
  if a.state == 'H' then
    a.state, a.reason = 'h', 'released'
    released[tail] = { text = pack_attempt(a), is_old = a.epoch < account.epoch }
    return 'RELEASED'
  end
  if a.state == 'h' then return 'RELEASED' end
  if a.state == 'V' and (a.reason == 'released' or a.reason == 'hold_expired') and a.offset == '' then return 'RELEASED' end
  return 'ALREADY_ORDERED'
end

local results = {}
for at = 3, #ARGV, 2 do results[#results + 1] = decide(ARGV[at], ARGV[at + 1]) end
for tail, entry in pairs(released) do
  redis.call('HSET', KEYS[2], tail, entry.text)
  -- No order was ever queued for it, so there is no grace to wait for; but what Redis knows of an earlier epoch may be less
  -- than what there was.
  redis.call('ZADD', KEYS[3], entry.is_old and now or now - grace, tail)
end
return { 'OK', unpack(results) }
