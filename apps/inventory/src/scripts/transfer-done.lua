-- Third step of a transfer: the source learns that the units have arrived. The entry stays until settlement.
-- KEYS  1 account  2 transfers  3 deadlines
-- ARGV  1 epoch  2 tid
-- Reply {'GONE'} | {'EPOCH', epoch} | {'FROZEN', how} | {'DONE'} | {'ALREADY'} | {'UNKNOWN'}
--@include "include/account.lua"

local account, refusal = read_account(KEYS[1], ARGV[1])
if not account then return refusal end
local text = redis.call('HGET', KEYS[2], ARGV[2])
if not text then return { 'UNKNOWN' } end
local units, destination = string.match(text, '^out|(%d+)|(%d+)|')
if not units then return { 'ALREADY' } end
check_balances({ openTransfers = account.openTransfers - 1 })
redis.call('ZCARD', KEYS[3])
redis.call('HSET', KEYS[2], ARGV[2], string.format('done|%s|%s', units, destination))
redis.call('ZREM', KEYS[3], 't:' .. ARGV[2])
redis.call('HINCRBY', KEYS[1], 'openTransfers', -1)
return { 'DONE' }
