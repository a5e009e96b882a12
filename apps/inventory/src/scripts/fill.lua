-- Writes the records of decided attempts into a bucket that has lost everything. In such a bucket nothing else happens, so a tail
-- that has a record got it from a call before, and is left as it is: a repetition does nothing.
-- KEYS  1 account  2 attempts  3 shoppers
-- ARGV  1 epoch; then 4 per item: tail, the record, its shopper, units that count as sold (0 for none)
-- Reply {'GONE'} | {'EPOCH', epoch} | {'FROZEN', how} where the bucket is not being filled | {'FILLED'}
--@include "include/account.lua"
--@include "include/shopper.lua"

local ITEM = 4

local account, refusal = read_any_account(KEYS[1], ARGV[1])
if not account then return refusal end
if account.frozen ~= 2 then return { 'FROZEN', tostring(account.frozen or 0) } end
local tails = {}
for at = 2, #ARGV, ITEM do tails[#tails + 1] = ARGV[at] end
local known = redis.call('HMGET', KEYS[2], unpack(tails))

local records, shoppers, units_of, sold = {}, {}, {}, 0
for i, tail in ipairs(tails) do
  local _, record, shopper, units = unpack(ARGV, 2 + (i - 1) * ITEM, 1 + i * ITEM)
  if not known[i] then
    records[#records + 1] = tail
    records[#records + 1] = record
    units = tonumber(units)
    if units > 0 then
      if not units_of[shopper] then shoppers[#shoppers + 1] = shopper end
      units_of[shopper] = (units_of[shopper] or 0) + units
      sold = sold + units
    end
  end
end
local usages = {}
if #shoppers > 0 then
  for i, text in ipairs(redis.call('HMGET', KEYS[3], unpack(shoppers))) do
    local used, live = unpack_usage(text)
    usages[#usages + 1] = shoppers[i]
    usages[#usages + 1] = pack_usage(used + units_of[shoppers[i]], live)
  end
end

if #records > 0 then redis.call('HSET', KEYS[2], unpack(records)) end
if #usages > 0 then redis.call('HSET', KEYS[3], unpack(usages)) end
if sold > 0 then
  redis.call('HINCRBY', KEYS[1], 'sold', sold)
  redis.call('HINCRBY', KEYS[1], 'initial', sold)
end
return { 'FILLED' }
