-- For scripts that bring decisions of MySQL: which counter of the account has an attempt's units, by its state, and the usage of
-- the shoppers of a batch.
--@include "shopper.lua"

local COUNTER = { H = 'held', h = 'held', Q = 'queued', q = 'queued', C = 'sold' }

-- Returns a function that gives a shopper's usage, read once, to be changed in place; and all that were given.
local function usages_in(key)
  local usages = {}
  local function usage_of(shopper)
    if not usages[shopper] then
      local used, live = unpack_usage(redis.call('HGET', key, shopper))
      usages[shopper] = { used = used, live = live }
    end
    return usages[shopper]
  end
  return usage_of, usages
end
