-- One attempt's record: ten fields joined by `|` (the grammar is documented in keys.ts).

local RECORD = '^(%a)|([^|]+)|(%d+)|(%d+)|([^|]*)|(%d*)|(%d*)|([^|]*)|(%d+)|(%d+)$'

-- The record as a table; nil for an absent one. An alias or a text of another shape is a broken assumption.
local function unpack_attempt(text)
  if not text then return nil end
  local state, shopper, quantity, deadline, delivery, partition, offset, reason, granted, epoch =
    string.match(text, RECORD)
  if not state then error('not an attempt record: ' .. text) end
  return {
    state = state, shopper = shopper, quantity = tonumber(quantity), deadline = tonumber(deadline),
    delivery = delivery, partition = partition, offset = offset, reason = reason,
    granted = tonumber(granted), epoch = tonumber(epoch),
  }
end

local function pack_attempt(a)
  return string.format('%s|%s|%d|%.0f|%s|%s|%s|%s|%.0f|%d', a.state, a.shopper, a.quantity, a.deadline,
    a.delivery, a.partition, a.offset, a.reason, a.granted, a.epoch)
end

-- The tail that an alias stands for; nil for anything that is not an alias.
local function alias_target(text)
  return text and string.match(text, '^@|(.+)$')
end
