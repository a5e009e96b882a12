-- Gives a bucket free units, or takes some that are free, because the sale has too few or too many in all. Once per id.
-- KEYS  1 account  2 transfers
-- ARGV  1 epoch  2 id of the correction  3 units; negative: at most so many are taken
-- Reply {'GONE'} | {'EPOCH', epoch} | {'FROZEN', how} | {'DONE', units} | {'ALREADY', units}
--@include "include/account.lua"

local account, refusal = read_account(KEYS[1], ARGV[1])
if not account then return refusal end
local before = redis.call('HGET', KEYS[2], 'c:' .. ARGV[2])
if before then return { 'ALREADY', string.match(before, '^fix|(%-?%d+)') } end
local initial = tonumber(redis.call('HGET', KEYS[1], 'initial'))
local units = math.max(tonumber(ARGV[3]), -account.free, -initial)
redis.call('HSET', KEYS[2], 'c:' .. ARGV[2], string.format('fix|%d', units))
redis.call('HINCRBY', KEYS[1], 'free', units)
redis.call('HINCRBY', KEYS[1], 'initial', units)
return { 'DONE', tostring(units) }
