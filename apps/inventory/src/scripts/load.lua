-- Opens a bucket's account with its share of the allotment. Refuses one of the same or a later epoch, so that a repeated
-- warm-up never gives the units twice. The gate stays shut until gate.lua has been told of a version.
-- KEYS  1 account  2 attempts  3 shoppers  4 deadlines  5 transfers  6 holders
-- ARGV  1 epoch  2 sku  3 units  4 bits of the holder filter  5 incarnation of the server
-- Reply 'LOADED' | 'ALREADY' | 'LATER'
local present = tonumber(redis.call('HGET', KEYS[1], 'epoch') or '0')
local epoch = tonumber(ARGV[1])
if present == epoch then return 'ALREADY' end
if present > epoch then return 'LATER' end

redis.call('DEL', KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6])
redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'sku', ARGV[2], 'initial', ARGV[3], 'free', ARGV[3], 'held', 0,
  'queued', 0, 'sold', 0, 'in', 0, 'out', 0, 'openTransfers', 0, 'opensAtMs', 0, 'closesAtMs', 0, 'paused', 0,
  'closed', 0, 'limit', 0, 'holdMs', 0, 'gateVersion', 0, 'grants', 0, 'filterBits', ARGV[4], 'frozen', 0,
  'boot', ARGV[5])
return 'LOADED'
