-- First step of a rebuild: the bucket passes into a new epoch, in which nothing happens until it is thawed. What it knows
-- is kept, unless it never knew enough: then it is emptied, to be filled from MySQL.
-- KEYS  1 account  2 attempts  3 shoppers  4 deadlines  5 transfers  6 holders
-- ARGV  1 the new epoch  2 the last epoch that was served  3 sku  4 bits of the holder filter
-- Reply {'EPOCH', epoch} where another rebuild has begun | {'KEPT'} | {'LOST'}
local present, frozen = unpack(redis.call('HMGET', KEYS[1], 'epoch', 'frozen'))
local epoch, served = tonumber(ARGV[1]), tonumber(ARGV[2])
present = tonumber(present or '0')
if present > epoch then return { 'EPOCH', tostring(present) } end
if present == epoch then return { frozen == '2' and 'LOST' or 'KEPT' } end
-- An account from before the last epoch that was served is an old copy; a half filled one was left by a dead rebuild.
if present >= served and frozen ~= '2' then
  redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'frozen', 1)
  return { 'KEPT' }
end
redis.call('UNLINK', KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6])
redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'sku', ARGV[3], 'initial', 0, 'free', 0, 'held', 0, 'queued', 0, 'sold', 0,
  'in', 0, 'out', 0, 'openTransfers', 0, 'opensAtMs', 0, 'closesAtMs', 0, 'paused', 0, 'closed', 0, 'limit', 0,
  'holdMs', 0, 'gateVersion', 0, 'grants', 0, 'filterBits', ARGV[4], 'frozen', 2)
return { 'LOST' }
