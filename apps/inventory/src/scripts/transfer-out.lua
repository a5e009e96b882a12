-- First step of a transfer: takes units out of a bucket that has some, and remembers it until they have arrived.
-- Takes what is needed and half of what would stay, so that a rich bucket is not asked again for every single unit.
-- KEYS  1 account  2 transfers  3 deadlines
-- ARGV  1 epoch  2 tid  3 units needed  4 bucket they go to  5 when others may finish it, ms from now  6 sweeper's grace
-- Reply {'GONE'} | {'EPOCH', epoch} | {'FROZEN', how} | {'EMPTY'} | {'OUT', units}
--@include "include/account.lua"

local account, refusal = read_account(KEYS[1], ARGV[1])
if not account then return refusal end
local known = redis.call('HGET', KEYS[2], ARGV[2])
if known then return { 'OUT', string.match(known, '^%a+|(%d+)|') } end
if account.free == 0 then return { 'EMPTY' } end
redis.call('ZCARD', KEYS[3])
local needed, now = tonumber(ARGV[3]), now_ms()
local units = math.min(account.free, needed + math.floor(math.max(0, account.free - needed) / 2))

redis.call('HSET', KEYS[2], ARGV[2], string.format('out|%d|%s|%.0f', units, ARGV[4], now))
redis.call('ZADD', KEYS[3], now + ARGV[5] - ARGV[6], 't:' .. ARGV[2])
redis.call('HINCRBY', KEYS[1], 'free', -units)
redis.call('HINCRBY', KEYS[1], 'out', units)
redis.call('HINCRBY', KEYS[1], 'openTransfers', 1)
return { 'OUT', tostring(units) }
