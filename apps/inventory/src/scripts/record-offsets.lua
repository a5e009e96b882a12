-- Notes where in Kafka acknowledged orders lie. The last acknowledgement counts: after a truncation only it is true.
-- KEYS  1 attempts  2 deadlines
-- ARGV  1 how far ahead a queued order's deadline must be, ms; then 3 per item: tail, partition, offset
-- Reply the number of attempts noted; one that Redis does not know is MySQL's to decide
--@include "include/attempt.lua"
--@include "include/account.lua"

local ITEM = 3
local now, ahead = now_ms(), tonumber(ARGV[1])
redis.call('ZCARD', KEYS[2])
local noted = {}
for at = 2, #ARGV, ITEM do
  local tail = ARGV[at]
  local text = redis.call('HGET', KEYS[1], tail)
  if text and not alias_target(text) then
    local a = unpack_attempt(text)
    a.partition, a.offset = ARGV[at + 1], ARGV[at + 2]
    -- Expiring and ended attempts keep their time, but an acknowledged order must be known as one.
    if a.state == 'Q' then a.deadline = math.max(a.deadline, now + ahead) end
    noted[#noted + 1] = { tail = tail, attempt = a }
  end
end
for _, entry in ipairs(noted) do
  redis.call('HSET', KEYS[1], entry.tail, pack_attempt(entry.attempt))
  if entry.attempt.state == 'Q' then redis.call('ZADD', KEYS[2], entry.attempt.deadline, entry.tail) end
end
return #noted
