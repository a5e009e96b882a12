-- A shopper's usage within a bucket: `used|liveTail`, units that count against the limit and the one live attempt.

local function unpack_usage(text)
  if not text then return 0, '' end
  local used, live = string.match(text, '^(%d+)|(.*)$')
  if not used then error('not a usage record: ' .. text) end
  return tonumber(used), live
end

local function pack_usage(used, live)
  return string.format('%d|%s', used, live)
end
