-- Ends a bucket's part in a rebuild: it gets its share of the units that nobody has, or gives some of its free ones back, and
-- counts what it has then as what it began with, because the transfers of earlier epochs have no other side any more. It
-- stays frozen until it is thawed.
-- KEYS  1 account  2 transfers  3 holders  4 attempts
-- ARGV  1 epoch  2 free units it gets; negative: so many are taken, if there are  3 incarnation of the server that answered when
--       it was frozen; and where it was being filled:  4 units it must have sold  5 the holder filter  6 grants in that
--       7 records it must have
-- Reply {'GONE'} | {'EPOCH', epoch} | {'SEALED'} | {'OPEN'} where it has been thawed already | {'FORGOT', units it has sold}
--@include "include/account.lua"

local account, refusal = read_any_account(KEYS[1], ARGV[1])
if not account then return refusal end
if (account.frozen or 0) == 0 then return { 'OPEN' } end
if redis.call('HGET', KEYS[1], 'sealed') == ARGV[1] then return { 'SEALED' } end
if account.openTransfers > 0 then error('a transfer is still open') end
-- Another server may have taken over meanwhile, with fewer of the records that it was filled with.
if account.frozen == 2 and (account.sold ~= tonumber(ARGV[4]) or redis.call('HLEN', KEYS[4]) ~= tonumber(ARGV[7])) then
  return { 'FORGOT', tostring(account.sold) }
end
local free = math.max(0, account.free + tonumber(ARGV[2]))
redis.call('UNLINK', KEYS[2])
if account.frozen == 2 then
  redis.call('SET', KEYS[3], ARGV[5])
  redis.call('HSET', KEYS[1], 'grants', ARGV[6])
end
redis.call('HSET', KEYS[1], 'free', free, 'initial', free + account.held + account.queued + account.sold, 'in', 0, 'out', 0,
  'frozen', 1, 'boot', ARGV[3], 'sealed', ARGV[1])
return { 'SEALED' }
