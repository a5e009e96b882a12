-- Second step of a transfer: the units arrive, and the items they were fetched for are granted in the same breath, before
-- anybody can pull the units away again. A repetition brings no units, but grants as grant.lua does.
-- KEYS  1 account  2 attempts  3 shoppers  4 deadlines  5 holders  6 transfers
-- ARGV  1 epoch  2 tid  3 units  4 bucket they come from; then items as in grant.lua
-- Reply {'GONE'} | {'EPOCH', epoch} | {'FROZEN', how} | {'OK', units left free, item…} with items as in grant.lua
--@include "include/grant-items.lua"

local keys = { account = KEYS[1], attempts = KEYS[2], shoppers = KEYS[3], deadlines = KEYS[4], holders = KEYS[5] }
local account, refusal = read_account(keys.account, ARGV[1])
if not account then return refusal end
local units = tonumber(ARGV[3])
if redis.call('HEXISTS', KEYS[6], ARGV[2]) == 1 then units = 0 end
account.free = account.free + units

local results, plan = decide_grants(keys, account, now_ms(), 5)
if units > 0 then
  redis.call('HSET', KEYS[6], ARGV[2], string.format('in|%d|%s', units, ARGV[4]))
  redis.call('HINCRBY', keys.account, 'free', units)
  redis.call('HINCRBY', keys.account, 'in', units)
end
write_grants(keys, plan)
return { 'OK', tostring(account.free), unpack(results) }
