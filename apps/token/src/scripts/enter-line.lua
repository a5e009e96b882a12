--[[
Joins the line of one sale, or says where an entry stands that is known. Idempotent by tail.

KEYS 1 gate, 2 places, 3 entries, 4 shoppers (see keys.ts)
ARGV 1 entries admitted a second; then four for each item, in order of arrival:
     tail, shopper, quantity,
     about the shopper's other, admitted entry, as Stock says: '' (not asked yet), '=tail' (it lives) or '-tail' (it is over)
Reply, one for each item:
     {'waiting', tail, position, created, number, bornMs, admitted}   created is '1' when this call made the entry, else '0';
                                            the last three as in line.lua
     {'admitted', tail, quantity, created}  through the line: ask Stock
     {'ended', tail, state, reason}
     {'live', tail, quantity}               the shopper has another, admitted entry: ask Stock whether it lives, come again
     {'exists'}                             the shopper has a live entry with another quantity
     {'reused'}                             this tail is known with another quantity
     {'sold_out'}                           not known, and nobody may join while everything is gone
]]
local GATE, PLACES, ENTRIES, SHOPPERS = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
--@include "line.lua"
local rate = tonumber(ARGV[1])
local now = now_ms()
local sold_out = sold_out_now(now)
local replies, entries, created = {}, {}, {}

for i = 2, #ARGV, 4 do
  local tail, shopper, quantity, about = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  local index = (i - 2) / 4 + 1
  local known = entry_of(tail)
  local live_tail = redis.call('HGET', SHOPPERS, shopper)
  local live = not known and live_tail and entry_of(live_tail) or nil
  if live and live.kind == 'A' and about == '-' .. live.tail then
    live = nil
  end
  if known and known.quantity ~= quantity then
    replies[index] = { 'reused' }
  elseif known then
    entries[index] = known.tail
  elseif live and live.kind == 'A' and about ~= '=' .. live.tail then
    replies[index] = { 'live', live.tail, live.quantity }
  elseif live and live.quantity ~= quantity then
    replies[index] = { 'exists' }
  elseif live then
    redis.call('HSET', ENTRIES, tail, '@|' .. live.tail)
    entries[index] = live.tail
  elseif sold_out then
    replies[index] = { 'sold_out' }
  else
    local number = redis.call('HINCRBY', GATE, 'seq', 1)
    redis.call('ZADD', PLACES, number, tail)
    redis.call('HSET', ENTRIES, tail, table.concat({ 'W', shopper, quantity, number }, '|'))
    redis.call('HSET', SHOPPERS, shopper, tail)
    entries[index], created[index] = tail, true
  end
end

admit(rate, now)
for index = 1, (#ARGV - 1) / 4 do
  replies[index] = replies[index] or standing(entry_of(entries[index]), created[index] and '1' or '0', sold_out)
end
return replies
