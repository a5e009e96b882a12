-- The account of a bucket: counters and gate. Every script that decides reads it first and refuses to guess without it.

-- Milliseconds since 1970 by Redis' clock, the only one that holds are judged by.
local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local NUMBERS = {
  'epoch', 'free', 'held', 'queued', 'sold', 'openTransfers', 'opensAtMs', 'closesAtMs', 'paused', 'closed', 'limit',
  'holdMs', 'gateVersion', 'frozen',
}
local FIELDS = { unpack(NUMBERS) }
FIELDS[#FIELDS + 1] = 'boot'

-- Returns the account, or nil and the refusal to reply with: {'GONE'} where there is none (Redis has lost it, or it was
-- never loaded), {'EPOCH', its epoch} where the caller knows another one. `fence` is `epoch`, or `epoch@incarnation` with
-- the life of the server that the caller believes to talk to.
local function read_any_account(key, fence)
  local epoch, incarnation = string.match(fence, '^(%d+)@?(.*)$')
  local values = redis.call('HMGET', key, unpack(FIELDS))
  if not values[1] then return nil, { 'GONE' } end
  local account = {}
  for i, name in ipairs(NUMBERS) do account[name] = tonumber(values[i]) end
  if account.epoch ~= tonumber(epoch) then return nil, { 'EPOCH', tostring(account.epoch) } end
  account.moved = incarnation ~= '' and (values[#NUMBERS + 1] or '') ~= '' and values[#NUMBERS + 1] ~= incarnation
  return account
end

-- The same for whoever changes or tells what is in the bucket: nobody but its rebuild may while it is frozen. Then the
-- refusal is {'FROZEN', 1}, or {'FROZEN', 2} where it is being filled and most of what it should know is missing. On another
-- server than the one that the bucket was last found whole on, writes may be missing: {'MOVED'} until that is seen to.
local function read_account(key, fence)
  local account, refusal = read_any_account(key, fence)
  if account and (account.frozen or 0) > 0 then return nil, { 'FROZEN', tostring(account.frozen) } end
  if account and account.moved then return nil, { 'MOVED' } end
  return account, refusal
end

-- Writes the counters that `balances` names. A negative one means that two records contradict each other; the caller
-- must have changed nothing yet.
local function check_balances(balances)
  for name, value in pairs(balances) do
    if value < 0 then error(name .. ' would become ' .. value) end
  end
end
