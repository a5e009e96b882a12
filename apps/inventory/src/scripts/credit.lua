-- Units have become free somewhere: whoever has seen all buckets empty before now may not say "sold out", and a "sold out"
-- that stands is lifted. Called after the write to the bucket, never before it.
-- KEYS  1 state
-- ARGV  1 epoch
-- Reply {'GONE'} | {'EPOCH', epoch} | {'LIFTED'} | {'NOTED'}
local epoch, sold_out = unpack(redis.call('HMGET', KEYS[1], 'epoch', 'soldOut'))
if not epoch then return { 'GONE' } end
if epoch ~= ARGV[1] then return { 'EPOCH', epoch } end
redis.call('HINCRBY', KEYS[1], 'credit', 1)
if sold_out ~= '1' then return { 'NOTED' } end
redis.call('HSET', KEYS[1], 'soldOut', 0)
return { 'LIFTED' }
