-- A bucket's counters at one moment, and how many attempts and transfers are unresolved. Reads only.
-- KEYS  1 account  2 deadlines
-- ARGV  1 epoch  2 'frozen': also of a frozen bucket
-- Reply {'GONE'} | {'EPOCH', epoch} | {'FROZEN', how} | {'OK', unresolved, incarnation, epoch, initial, free, held, queued, sold, in, out, openTransfers, grants}
local values = redis.call('HMGET', KEYS[1], 'epoch', 'initial', 'free', 'held', 'queued', 'sold', 'in', 'out',
  'openTransfers', 'grants')
if not values[1] then return { 'GONE' } end
local frozen, boot = unpack(redis.call('HMGET', KEYS[1], 'frozen', 'boot'))
if values[1] ~= ARGV[1] then return { 'EPOCH', values[1] } end
if (frozen or '0') ~= '0' and ARGV[2] ~= 'frozen' then return { 'FROZEN', frozen } end
return { 'OK', redis.call('ZCARD', KEYS[2]), boot or '', unpack(values) }
