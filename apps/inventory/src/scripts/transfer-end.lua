-- Ends a transfer that a rebuild has found open in a frozen bucket: the units arrived, or they come back. Idempotent by tid.
-- KEYS  1 account  2 transfers  3 deadlines
-- ARGV  1 epoch  2 tid  3 'done' or 'back'
-- Reply {'GONE'} | {'EPOCH', epoch} | {'ENDED'} | {'ALREADY'}
--@include "include/account.lua"

local account, refusal = read_any_account(KEYS[1], ARGV[1])
if not account then return refusal end
local units, destination = string.match(redis.call('HGET', KEYS[2], ARGV[2]) or '', '^out|(%d+)|(%d+)|')
if not units then return { 'ALREADY' } end
check_balances({ openTransfers = account.openTransfers - 1 })
redis.call('ZREM', KEYS[3], 't:' .. ARGV[2])
redis.call('HSET', KEYS[2], ARGV[2], string.format('%s|%s|%s', ARGV[3], units, destination))
redis.call('HINCRBY', KEYS[1], 'openTransfers', -1)
if ARGV[3] == 'back' then
  redis.call('HINCRBY', KEYS[1], 'free', units)
  redis.call('HINCRBY', KEYS[1], 'out', -units)
end
return { 'ENDED' }
