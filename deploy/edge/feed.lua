-- Keeps the shared dictionaries as the gateways say: one worker asks one gateway ten times a second (`/edge/refusals` on its
-- ops port, apps/gateway/src/edge.controller.ts), and the next gateway as soon as one does not answer. Everything is
-- replaced each time, so nothing has to be taken back, and what is not repeated ends by its age (edge.lua).
local cjson = require "cjson.safe"

local feed, holders = ngx.shared.feed, ngx.shared.holders

-- Seconds.
local ASK_EVERY = 0.1
local CONNECT_MS, ANSWER_MS = 200, 300
local MAX_REFUSALS_BYTES = 1024 * 1024
-- A larger filter is not kept, and its sale not refused here.
local MAX_FILTER_BYTES = 16 * 1024 * 1024

local M = {}

-- {host, port}, in the order in which they are asked.
local gateways = {}
for host, port in (os.getenv("GATEWAY_FEEDS") or ""):gmatch("([^:,%s]+):(%d+)") do
  gateways[#gateways + 1] = { host = host, port = tonumber(port) }
end
-- A filter that cannot be kept is not asked for again before that.
local ASK_AGAIN_AFTER = 10
-- The filters in the dictionary, and those that cannot be kept with the time at which to ask for them again; by key.
local kept, not_before = {}, {}
local failing = false

-- The body of an answer with status 200; otherwise nil, why, and whether it was too large.
local function get(gateway, path, max_bytes)
  local socket = ngx.socket.tcp()
  socket:settimeouts(CONNECT_MS, ANSWER_MS, ANSWER_MS)
  local ok, fault = socket:connect(gateway.host, gateway.port)
  if not ok then return nil, fault end
  local function give_up(why)
    socket:close()
    return nil, why
  end
  local sent, send_fault = socket:send("GET " .. path .. " HTTP/1.1\r\nHost: " .. gateway.host .. "\r\n\r\n")
  if not sent then return give_up(send_fault) end
  local length, is_closing
  local status, read_fault = socket:receive("*l")
  if not status then return give_up(read_fault) end
  while true do
    local line, line_fault = socket:receive("*l")
    if not line then return give_up(line_fault) end
    if line == "" then break end
    local name, value = line:match("^([^:]+):%s*(.-)%s*$")
    name = name and name:lower()
    if name == "content-length" then length = tonumber(value) end
    if name == "connection" then is_closing = value:lower() == "close" end
  end
  if not status:match("^HTTP/1%.1 200 ") then return give_up(status) end
  if not length then return give_up("an answer of unknown length") end
  if length > max_bytes then
    socket:close()
    return nil, "an answer of " .. length .. " bytes", true
  end
  local body, body_fault = socket:receive(length)
  if not body then return give_up(body_fault) end
  if is_closing then socket:close() else socket:setkeepalive(10000, 4) end
  return body
end

-- Gives up a filter for that of a newer sale, for which there is no room: first one that is not told of any more, then that
-- of the oldest sale. keys: as told, the oldest sale first; newer: the place of the newer sale there. False if there is none.
local function give_up_older(keys, is_told, newer, now)
  local victim
  for key in pairs(kept) do
    if not is_told[key] then victim = key end
  end
  for i = 1, victim and 0 or newer - 1 do
    if kept[keys[i]] then
      victim = keys[i]
      not_before[victim] = now + ASK_AGAIN_AFTER
      break
    end
  end
  if not victim then return false end
  holders:delete(victim)
  kept[victim] = nil
  return true
end

-- Keeps in the dictionary the filters that are told of, as far as there is room. Without its filter a sale is passed to the
-- gateways.
local function keep_filters(gateway, refusals, now)
  local keys, is_told = {}, {}
  for _, refusal in ipairs(refusals) do
    if refusal.holders then
      keys[#keys + 1] = refusal.saleId .. ":" .. refusal.holders.version
      is_told[keys[#keys]] = true
    end
  end
  for key in pairs(not_before) do
    if not is_told[key] then not_before[key] = nil end
  end
  -- Crowds wait for the newest.
  for i = #keys, 1, -1 do
    local key = keys[i]
    if not kept[key] and (not_before[key] or 0) <= now then
      local bytes, fault, is_too_large = get(gateway, "/edge/holders/" .. key:gsub(":", "/"), MAX_FILTER_BYTES)
      if bytes then
        -- safe_set never throws others out.
        repeat kept[key] = holders:safe_set(key, bytes) or nil
        until kept[key] or not give_up_older(keys, is_told, i, now)
      end
      if is_too_large or (bytes and not kept[key]) then
        ngx.log(ngx.WARN, "the holders of ", key, " cannot be kept: ", fault or "the dictionary is full")
        not_before[key] = now + ASK_AGAIN_AFTER
        -- Nor is there room for older ones.
        for older = 1, is_too_large and 0 or i - 1 do not_before[keys[older]] = now + ASK_AGAIN_AFTER end
      end
    end
  end
  return is_told
end

-- Whether the dictionaries are as this gateway says; else why not.
local function ask(gateway)
  -- Before the gateway looked at its clock: what it says to hold for so long holds at least until so long from here.
  ngx.update_time()
  local asked_at = ngx.now()
  local body, fault = get(gateway, "/edge/refusals", MAX_REFUSALS_BYTES)
  if not body then return false, fault end
  local told = cjson.decode(body)
  if type(told) ~= "table" or type(told.refusals) ~= "table" then return false, "an answer of another form" end
  -- Filters come before what needs them and go after it.
  local is_told = keep_filters(gateway, told.refusals, asked_at)
  if not feed:safe_set("refusals", body) then return false, "the dictionary is full" end
  feed:set("asked_at", asked_at)
  for key in pairs(kept) do
    if not is_told[key] then
      holders:delete(key)
      kept[key] = nil
    end
  end
  return true
end

local function ask_any()
  local faults = {}
  for _ = 1, #gateways do
    local gateway = gateways[1]
    local ok, fault = ask(gateway)
    if ok then
      if failing then ngx.log(ngx.CRIT, "a gateway tells again what may be refused") end
      failing = false
      return
    end
    faults[#faults + 1] = ("%s:%d: %s"):format(gateway.host, gateway.port, fault)
    table.insert(gateways, table.remove(gateways, 1))
  end
  if not failing then
    ngx.log(ngx.CRIT, "no gateway tells what may be refused; everything is passed on: ", table.concat(faults, ", "))
  end
  failing = true
end

-- A timer for each time, not one that never ends: what a request or a timer used of memory comes back when it ends.
local function tick(premature)
  if premature then return end
  local ok, fault = pcall(ask_any)
  if not ok then ngx.log(ngx.CRIT, "the feed met a defect: ", fault) end
  ngx.timer.at(ASK_EVERY, tick)
end

function M.start()
  math.randomseed(ngx.worker.pid())
  if ngx.worker.id() ~= 0 or #gateways == 0 then return end
  -- Left by a worker that died.
  holders:flush_all()
  holders:flush_expired()
  ngx.timer.at(0, tick)
end

return M
