-- Says "sold out", if nothing was credited since the caller read the counter and then found every bucket empty.
-- KEYS  1 state
-- ARGV  1 epoch  2 the credit counter as read before the scan
-- Reply {'GONE'} | {'EPOCH', epoch} | {'SET'} | {'ALREADY'} | {'CREDITED'}
local epoch, credit, sold_out = unpack(redis.call('HMGET', KEYS[1], 'epoch', 'credit', 'soldOut'))
if not epoch then return { 'GONE' } end
if epoch ~= ARGV[1] then return { 'EPOCH', epoch } end
if credit ~= ARGV[2] then return { 'CREDITED' } end
if sold_out == '1' then return { 'ALREADY' } end
redis.call('HSET', KEYS[1], 'soldOut', 1)
return { 'SET' }
