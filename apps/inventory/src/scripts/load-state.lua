-- Opens the sale's state in an epoch: nothing credited, not sold out, marked as booted. Refuses the same or a later epoch.
-- KEYS  1 state
-- ARGV  1 epoch  2 boot marker
-- Reply 'LOADED' | 'ALREADY' | 'LATER'
local present = tonumber(redis.call('HGET', KEYS[1], 'epoch') or '0')
local epoch = tonumber(ARGV[1])
if present == epoch then return 'ALREADY' end
if present > epoch then return 'LATER' end
redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'boot', ARGV[2], 'credit', 0, 'soldOut', 0, 'version', 0)
return 'LOADED'
