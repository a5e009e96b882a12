--[[
Gives up places in the line of one sale. Idempotent.

KEYS 1 gate, 2 places, 3 entries, 4 shoppers (see keys.ts)
ARGV two for each item: tail, shopper
Reply, one for each item:
     {'ended', tail, state, reason}     it has left, now or before, or has ended otherwise
     {'admitted', tail, quantity, '0'}  through the line: Stock has to release it
     {'unknown'}                        no such entry of this shopper in the line
]]
local GATE, PLACES, ENTRIES, SHOPPERS = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
--@include "line.lua"
local replies = {}
for i = 1, #ARGV, 2 do
  local entry = entry_of(ARGV[i])
  if not entry or entry.shopper ~= ARGV[i + 1] then
    replies[(i + 1) / 2] = { 'unknown' }
  else
    if entry.kind == 'W' then
      end_entry(entry, 'released', 'released')
    end
    replies[(i + 1) / 2] = standing(entry, '0', false)
  end
end
return replies
