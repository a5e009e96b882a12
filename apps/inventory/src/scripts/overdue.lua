-- Hands a sweeper what is past its deadline and the grace, and keeps other sweepers off it for the length of a lease.
-- A hold, or a queued order without an offset, begins to expire here: from now on nothing can be produced for it.
-- KEYS  1 account  2 attempts  3 deadlines  4 transfers
-- ARGV  1 epoch  2 grace, ms  3 lease, ms  4 how many at most
-- Reply {'GONE'} | {'EPOCH', epoch} | {'FROZEN', how} | {'OK', item…}, an item being {'ATTEMPT', tail, record} | {'TRANSFER', tid, entry}
--@include "include/attempt.lua"
--@include "include/account.lua"

local account, refusal = read_account(KEYS[1], ARGV[1])
if not account then return refusal end
local now, grace, lease = now_ms(), tonumber(ARGV[2]), tonumber(ARGV[3])
local members = redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now - grace, 'LIMIT', 0, ARGV[4])
local begun, leased, ended, results = {}, {}, {}, {}

local function attempt_due(tail)
  local text = redis.call('HGET', KEYS[2], tail)
  local a = unpack_attempt(text)
  if not a or a.state == 'C' or a.state == 'V' then return nil end
  if a.state == 'H' or (a.state == 'Q' and a.offset == '') then
    a.state = string.lower(a.state)
    a.reason = 'hold_expired'
    text = pack_attempt(a)
    begun[#begun + 1] = tail
    begun[#begun + 1] = text
  end
  return { 'ATTEMPT', tail, text }
end

for _, member in ipairs(members) do
  local tid = string.match(member, '^t:(.+)$')
  local item
  if tid then
    local entry = redis.call('HGET', KEYS[4], tid)
    item = entry and { 'TRANSFER', tid, entry }
  else
    item = attempt_due(member)
  end
  if item then
    results[#results + 1] = item
    leased[#leased + 1] = now + lease - grace
    leased[#leased + 1] = member
  else
    ended[#ended + 1] = member
  end
end
if #begun > 0 then redis.call('HSET', KEYS[2], unpack(begun)) end
if #leased > 0 then redis.call('ZADD', KEYS[3], unpack(leased)) end
if #ended > 0 then redis.call('ZREM', KEYS[3], unpack(ended)) end
return { 'OK', unpack(results) }
