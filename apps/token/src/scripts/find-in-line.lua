--[[
Where entries of one sale stand; moves the line on by what time allows.

KEYS 1 gate, 2 places, 3 entries, 4 shoppers (see keys.ts)
ARGV 1 entries admitted a second; then two for each item: tail, shopper
Reply, one for each item:
     {'waiting', tail, position, '0', number, bornMs, admitted} | {'admitted', tail, quantity, '0'} | {'ended', tail, state, reason}
     {'unknown'}                      no such entry of this shopper in the line
]]
local GATE, PLACES, ENTRIES, SHOPPERS = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
--@include "line.lua"
local now = now_ms()
local sold_out = sold_out_now(now)
admit(tonumber(ARGV[1]), now)

local replies = {}
for i = 2, #ARGV, 2 do
  local entry = entry_of(ARGV[i])
  if entry and entry.shopper == ARGV[i + 1] then
    replies[i / 2] = standing(entry, '0', sold_out)
  else
    replies[i / 2] = { 'unknown' }
  end
end
return replies
