-- The number of the sale's next snapshot. Whoever takes it reads what to say afterwards, so that of two snapshots the one
-- with the higher number was read later.
-- KEYS  1 state
-- ARGV  1 epoch
-- Reply {'GONE'} | {'EPOCH', epoch} | {'OK', version, soldOut}
local epoch, sold_out = unpack(redis.call('HMGET', KEYS[1], 'epoch', 'soldOut'))
if not epoch then return { 'GONE' } end
if epoch ~= ARGV[1] then return { 'EPOCH', epoch } end
return { 'OK', tostring(redis.call('HINCRBY', KEYS[1], 'version', 1)), sold_out }
