-- Sets units of one bucket aside for a batch of attempts. Idempotent by attempt: a known one gets its present state.
-- KEYS  1 account  2 attempts  3 shoppers  4 deadlines  5 holders
-- ARGV  1 epoch; then 7 per item: tail, shopper, quantity, 4 positions in the holder filter; at most 256 items
-- Reply {'GONE'} | {'EPOCH', epoch} | {'FROZEN', how} | {'OK', item…}, an item being
--       {'GRANTED', tail, record} | {'KNOWN', tail, record} | {'MISMATCH'} | {'NOT_OPEN'} | {'PAUSED'} | {'CLOSED'}
--       | {'ENTRY_EXISTS'} | {'LIMIT'} | {'EMPTY', free}
--@include "include/grant-items.lua"

local keys = { account = KEYS[1], attempts = KEYS[2], shoppers = KEYS[3], deadlines = KEYS[4], holders = KEYS[5] }
local account, refusal = read_account(keys.account, ARGV[1])
if not account then return refusal end

local results, plan = decide_grants(keys, account, now_ms(), 2)
write_grants(keys, plan)
return { 'OK', unpack(results) }
