-- Keeps the list of blocked shoppers for gateways that come later and tells those that listen, if the list that is there is
-- the one that the caller builds upon.
-- KEYS  1 list
-- ARGV  1 the field with the version  2 version that must be there, '' for no list  3 version from now on  4 channel
--       5 the message for gateways  6 'all' | 'add' | 'remove'  7… shopper ids; with 'all' they are the whole list
-- Reply 'TOLD' | 'OTHER'
if (redis.call('HGET', KEYS[1], ARGV[1]) or '') ~= ARGV[2] then return 'OTHER' end
if ARGV[6] == 'all' then redis.call('DEL', KEYS[1]) end
for i = 7, #ARGV do
  if ARGV[6] == 'remove' then
    redis.call('HDEL', KEYS[1], ARGV[i])
  else
    redis.call('HSET', KEYS[1], ARGV[i], '1')
  end
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
redis.call('PUBLISH', ARGV[4], ARGV[5])
return 'TOLD'
