-- The account of a bucket: counters and gate. Every script that decides reads it first and refuses to guess without it.

-- Milliseconds since 1970 by Redis' clock, the only one that holds are judged by.
local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local NUMBERS = {
  'epoch', 'free', 'held', 'queued', 'sold', 'openTransfers', 'opensAtMs', 'closesAtMs', 'paused', 'closed', 'limit',
  'holdMs', 'gateVersion',
}

-- Returns the account, or nil and the refusal to reply with: {'GONE'} where there is none (Redis has lost it, or it was
-- never loaded), {'EPOCH', its epoch} where the caller knows another one.
local function read_account(key, epoch)
  local values = redis.call('HMGET', key, unpack(NUMBERS))
  if not values[1] then return nil, { 'GONE' } end
  local account = {}
  for i, name in ipairs(NUMBERS) do account[name] = tonumber(values[i]) end
  if account.epoch ~= tonumber(epoch) then return nil, { 'EPOCH', tostring(account.epoch) } end
  return account
end

-- Writes the counters that `balances` names. A negative one means that two records contradict each other; the caller
-- must have changed nothing yet.
local function check_balances(balances)
  for name, value in pairs(balances) do
    if value < 0 then error(name .. ' would become ' .. value) end
  end
end
