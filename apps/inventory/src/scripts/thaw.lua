-- Last step of a rebuild, when MySQL says that it is finished: the bucket works again. Anybody may do it, and again.
-- KEYS  1 account
-- ARGV  1 epoch
-- Reply {'GONE'} | {'EPOCH', epoch} | {'FROZEN', 2} where it was never filled | {'THAWED'} | {'ALREADY'}
--@include "include/account.lua"

local account, refusal = read_any_account(KEYS[1], ARGV[1])
if not account then return refusal end
if account.frozen == 2 then return { 'FROZEN', '2' } end
if account.frozen ~= 1 then return { 'ALREADY' } end
redis.call('HSET', KEYS[1], 'frozen', 0)
return { 'THAWED' }
