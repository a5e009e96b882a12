-- Turns holds into queued orders, before they are produced to Kafka. A replay by the same delivery is answered alike.
-- KEYS  1 account  2 attempts  3 deadlines
-- ARGV  1 the sale's epoch  2 how far ahead the deadline must be, ms; then 5 per item: tail, shopper, quantity, the token's
--       epoch, delivery hash
-- Reply {'GONE'} | {'EPOCH', epoch} | {'FROZEN', how} | {'OK', item…}, an item being 'QUEUED' | 'DECIDED' | 'EXPIRING'
--       | 'TOKEN_EXPIRED' | 'OTHER_DELIVERY' | 'MISSING' | 'CONTRADICTS'
--@include "include/attempt.lua"
--@include "include/account.lua"

local ITEM = 5
-- These ended before there was an order; behind every other reason stands a row of MySQL, as behind a record that Kafka
-- is known to have had.
local NEVER_ORDERED = { hold_expired = true, released = true }

local account, refusal = read_account(KEYS[1], ARGV[1])
if not account then return refusal end
local now, ahead = now_ms(), tonumber(ARGV[2])
redis.call('ZCARD', KEYS[3])
local tails = {}
for at = 3, #ARGV, ITEM do tails[#tails + 1] = ARGV[at] end
local records = {}
for i, text in ipairs(redis.call('HMGET', KEYS[2], unpack(tails))) do records[tails[i]] = text or records[tails[i]] end
local changed, queued_units = {}, 0

local function decide(tail, shopper, quantity, token_epoch, delivery)
  local text = records[tail]
  -- Unknown, or an alias: the hold that the token was made of was forgotten. MySQL decides.
  if not text or alias_target(text) then return 'MISSING' end
  local a = unpack_attempt(text)
  if a.shopper ~= shopper or a.quantity ~= tonumber(quantity) then
    -- A token is made of its hold. One of a forgotten epoch may have been made of another hold than this one.
    return tonumber(token_epoch) == a.epoch and 'CONTRADICTS' or 'TOKEN_EXPIRED'
  end
  if a.state == 'h' or a.state == 'q' then return 'EXPIRING' end
  if a.state == 'H' and now > a.deadline then return 'TOKEN_EXPIRED' end
  if a.state == 'V' and NEVER_ORDERED[a.reason] and a.offset == '' then return 'TOKEN_EXPIRED' end
  if a.delivery ~= '' and a.delivery ~= delivery then return 'OTHER_DELIVERY' end
  if a.state == 'C' or a.state == 'V' then return 'DECIDED' end
  if a.state == 'H' then queued_units = queued_units + a.quantity end
  a.state = 'Q'
  a.delivery = delivery
  a.deadline = math.max(a.deadline, now + ahead)
  records[tail] = pack_attempt(a)
  changed[tail] = a.deadline
  return 'QUEUED'
end

local results = {}
for at = 3, #ARGV, ITEM do
  results[#results + 1] = decide(ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4])
end
for tail, deadline in pairs(changed) do
  redis.call('HSET', KEYS[2], tail, records[tail])
  redis.call('ZADD', KEYS[3], deadline, tail)
end
if queued_units > 0 then
  redis.call('HINCRBY', KEYS[1], 'held', -queued_units)
  redis.call('HINCRBY', KEYS[1], 'queued', queued_units)
end
return { 'OK', unpack(results) }
