-- Kafka has lost acknowledged orders: they begin to expire, unless a repetition was acknowledged in the meantime.
-- KEYS  1 account  2 attempts  3 deadlines
-- ARGV  1 epoch  2 grace, ms; then 3 per item: tail, partition and offset that were looked for
-- Reply {'GONE'} | {'EPOCH', epoch} | {'FROZEN', how} | {'OK', item…}, an item being 'BEGUN' | 'CHANGED'
--@include "include/attempt.lua"
--@include "include/account.lua"

local account, refusal = read_account(KEYS[1], ARGV[1])
if not account then return refusal end
local now, grace = now_ms(), tonumber(ARGV[2])
redis.call('ZCARD', KEYS[3])
local begun, results = {}, {}
for at = 3, #ARGV, 3 do
  local a = unpack_attempt(redis.call('HGET', KEYS[2], ARGV[at]))
  local same = a and a.state == 'Q' and a.partition == ARGV[at + 1] and a.offset == ARGV[at + 2]
  if same then
    a.state, a.reason = 'q', 'lost'
    begun[#begun + 1] = { tail = ARGV[at], text = pack_attempt(a) }
  end
  results[#results + 1] = same and 'BEGUN' or 'CHANGED'
end
for _, entry in ipairs(begun) do
  redis.call('HSET', KEYS[2], entry.tail, entry.text)
  redis.call('ZADD', KEYS[3], now - grace, entry.tail)
end
return { 'OK', unpack(results) }
