-- Tells a bucket when and to whom it may grant. An older version than the one it knows changes nothing, so gates may be
-- set by several instances, in any order, again and again; also while it is frozen, for what comes after.
-- KEYS  1 account
-- ARGV  1 epoch  2 version  3 opensAtMs  4 closesAtMs  5 paused (0/1)  6 closed (0/1)  7 limit  8 holdMs
-- Reply {'GONE'} | {'EPOCH', epoch} | {'SET'} | {'ALREADY'}
--@include "include/account.lua"

local account, refusal = read_any_account(KEYS[1], ARGV[1])
if not account then return refusal end
if account.gateVersion >= tonumber(ARGV[2]) then return { 'ALREADY' } end
redis.call('HSET', KEYS[1], 'gateVersion', ARGV[2], 'opensAtMs', ARGV[3], 'closesAtMs', ARGV[4], 'paused', ARGV[5],
  'closed', ARGV[6], 'limit', ARGV[7], 'holdMs', ARGV[8])
return { 'SET' }
