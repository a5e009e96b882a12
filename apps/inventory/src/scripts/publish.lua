-- Keeps a sale's snapshot for gateways that come later and tells those that listen, unless a newer one is there.
-- KEYS  1 snapshots
-- ARGV  1 sale id  2 epoch  3 version  4 the snapshot as JSON  5 channel
-- Reply 'PUBLISHED' | 'OLDER'
local present = redis.call('HGET', KEYS[1], ARGV[1])
if present then
  local known = cjson.decode(present)
  local epoch, version = tonumber(ARGV[2]), tonumber(ARGV[3])
  if known.epoch > epoch or (known.epoch == epoch and known.version >= version) then return 'OLDER' end
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[4])
redis.call('PUBLISH', ARGV[5], ARGV[4])
return 'PUBLISHED'
