--[[
Notes in the line of one sale what Stock answered about admitted entries. Idempotent.

KEYS 1 gate, 2 places, 3 entries, 4 shoppers (see keys.ts)
ARGV 1 milliseconds for which the sale counts as sold out, 2 milliseconds for which nobody is admitted (0: as before);
     then four for each entry: tail, 'end' or 'forget', state, reason
     An entry that ended in the line keeps its end; 'forget' removes an entry that never had an answer worth keeping.
Reply: how many entries were changed
]]
local GATE, PLACES, ENTRIES, SHOPPERS = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
--@include "line.lua"
local now = now_ms()
if tonumber(ARGV[1]) > 0 then
  redis.call('HSET', GATE, 'soldOutUntilMs', string.format('%.0f', now + tonumber(ARGV[1])))
end
if tonumber(ARGV[2]) > 0 then
  redis.call('HSET', GATE, 'stalledUntilMs', string.format('%.0f', now + tonumber(ARGV[2])))
end
local changed = 0
for i = 3, #ARGV, 4 do
  local entry = entry_of(ARGV[i])
  if entry and entry.kind ~= 'E' then
    end_entry(entry, ARGV[i + 2], ARGV[i + 3])
    if ARGV[i + 1] == 'forget' then
      redis.call('HDEL', ENTRIES, entry.tail)
    end
    changed = changed + 1
  end
end
return changed
