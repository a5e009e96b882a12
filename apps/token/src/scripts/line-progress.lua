--[[
How far the line of one sale has come; moves it on by what time allows.

KEYS 1 gate, 2 places, 3 entries, 4 shoppers (see keys.ts)
ARGV 1 entries admitted a second
Reply {bornMs, admitted, admittedTo, sold out ('1' or '0')}, the first three as in line.lua
]]
local GATE, PLACES, ENTRIES, SHOPPERS = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
--@include "line.lua"
local now = now_ms()
admit(tonumber(ARGV[1]), now)
local reply = progress()
reply[4] = sold_out_now(now) and '1' or '0'
return reply
