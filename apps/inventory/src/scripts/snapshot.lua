-- A bucket's counters at one moment, and how many attempts and transfers are unresolved. Reads only.
-- KEYS  1 account  2 deadlines
-- ARGV  1 epoch
-- Reply {'GONE'} | {'EPOCH', epoch} | {'OK', unresolved, epoch, initial, free, held, queued, sold, in, out, openTransfers, grants}
local values = redis.call('HMGET', KEYS[1], 'epoch', 'initial', 'free', 'held', 'queued', 'sold', 'in', 'out',
  'openTransfers', 'grants')
if not values[1] then return { 'GONE' } end
if values[1] ~= ARGV[1] then return { 'EPOCH', values[1] } end
return { 'OK', redis.call('ZCARD', KEYS[2]), unpack(values) }
