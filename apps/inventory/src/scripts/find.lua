-- Where attempts stand. Reads only.
-- KEYS  1 account  2 attempts
-- ARGV  1 epoch; then 2 per item: tail, shopper
-- Reply {'GONE'} | {'EPOCH', epoch} | {'FROZEN', how} | {'OK', item…}, an item being {'KNOWN', tail, record} | {'UNKNOWN'}
--@include "include/attempt.lua"
--@include "include/account.lua"

local account, refusal = read_account(KEYS[1], ARGV[1])
if not account then return refusal end
local results = {}
for at = 2, #ARGV, 2 do
  local tail, shopper = ARGV[at], ARGV[at + 1]
  local text = redis.call('HGET', KEYS[2], tail)
  local first_tail = alias_target(text)
  if first_tail then tail, text = first_tail, redis.call('HGET', KEYS[2], first_tail) end
  local a = unpack_attempt(text)
  results[#results + 1] = a and a.shopper == shopper and { 'KNOWN', tail, text } or { 'UNKNOWN' }
end
return { 'OK', unpack(results) }
