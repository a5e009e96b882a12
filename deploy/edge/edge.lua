-- What the edge decides by itself, for each request: whether the gateways' feed refuses it, and whether it comes too fast.
-- Whoever is not refused here is passed on; the gateways decide everything else, and again all of this.
local base64 = require "ngx.base64"
local cjson = require "cjson.safe"
local ffi = require "ffi"
local problems = require "problems"

-- Patterns of Lua are interpreted; on the way of every request there are only plain searches and PCRE, which are compiled.
local byte, find, match, sub = string.byte, string.find, string.match, string.sub
local matches = ngx.re.find
local feed, holders = ngx.shared.feed, ngx.shared.holders
local limits, counts = ngx.shared.limits, ngx.shared.counts

-- Without news for so long nobody is refused by the feed any more, seconds.
local FRESH_FOR = 1
local CLOCKS_DIFFER = 0.1
-- A token's length at most, as in the gateway; longer ones are for it to refuse.
local MAX_AUTHORIZATION = 4110
-- How many of a token's last characters, which are of its signature, stand for it.
local TOKEN_TAIL = 40
-- Hashes of the holder filter (libs/domain/src/holder-filter.ts).
local FILTER_HASHES = 4

local function rate_of(name, default)
  return tonumber(os.getenv(name) or "") or default
end
local PER_ADDRESS = rate_of("RATE_LIMIT_PER_ADDRESS_PER_SECOND", 10000)
local PER_SHOPPER = rate_of("RATE_LIMIT_PER_SHOPPER_PER_SECOND", 80)
local HAS_FEED = (os.getenv("GATEWAY_FEEDS") or "") ~= ""

local function read_file(name)
  local folder = match(debug.getinfo(1, "S").source, "^@(.*/)") or "./"
  local file = assert(io.open(folder .. name, "rb"))
  local text = file:read("*a")
  file:close()
  return text
end
local BUSY_PAGE = read_file("busy.html")

-- In three steps, because OpenSSL's single one looks its algorithm up by name each time. The context has 112 bytes.
ffi.cdef [[
int SHA256_Init(void *context);
int SHA256_Update(void *context, const void *data, size_t length);
int SHA256_Final(unsigned char *digest, void *context);
]]
local sha256 = ffi.new("uint64_t[32]")
local digest = ffi.new("unsigned char[32]")

local M = {}

-- ── Answers ─────────────────────────────────────────────────────────────────────────────────────────────────────────

-- Unlike any other, and made of nothing random, which would cost more than the rest of an answer: this worker, and a count.
local worker_name, answered = nil, 0
local function request_id()
  local given = ngx.var.http_x_request_id
  if given and matches(given, "^[A-Za-z0-9_-]{1,64}$", "joD") then return given end
  worker_name = worker_name or ("edge-%x-%x-"):format(ngx.worker.pid(), ngx.now() * 1000)
  answered = answered + 1
  return worker_name .. answered
end

-- Ends the request with a problem of the contracts. retry_after: whole seconds, for 429 and 503.
local function answer(code, retry_after)
  local problem = problems.by_code[code]
  local id = request_id()
  -- Else what is left of the body would be read as the next request.
  ngx.req.discard_body()
  ngx.status = problem.status
  local header = ngx.header
  header["Content-Type"] = "application/problem+json; charset=utf-8"
  header["Cache-Control"] = "no-store"
  header["X-Request-Id"] = id
  if problem.retry_after_seconds then header["Retry-After"] = retry_after or problem.retry_after_seconds end
  local body = problem.body .. id .. '"}'
  header["Content-Length"] = #body
  ngx.print(body)
  return ngx.exit(ngx.HTTP_OK)
end

local function count(name)
  counts:incr(name, 1, 0)
end

-- ── Rates ───────────────────────────────────────────────────────────────────────────────────────────────────────────

-- Takes a token out of a bucket that holds a second's worth. What is kept of a bucket is one number: when it will be full
-- again. Returns nil, or in how many seconds there is a token. Two workers at once may take one token too many, never one
-- too few.
local function take(key, per_second, now)
  local cost = 1 / per_second
  local full_at = limits:incr(key, cost, now)
  if not full_at then return nil end
  local ahead = full_at - now
  -- It was full; or the clock was set back, and nobody is to wait for it.
  if ahead < cost or ahead > 4 then
    limits:set(key, now + cost)
    return nil
  end
  if ahead <= 1 then return nil end
  limits:incr(key, -cost)
  return ahead - 1
end

-- In how many whole seconds the caller may come again; nil for now. A shopper is a token here: who a token names is not
-- verified, and nobody may use up another's bucket by naming him.
local function too_fast(authorization, now)
  local wait
  if PER_ADDRESS > 0 then wait = take("a" .. ngx.var.binary_remote_addr, PER_ADDRESS, now) end
  if not wait and PER_SHOPPER > 0 and authorization then
    wait = take("t" .. authorization:sub(-TOKEN_TAIL), PER_SHOPPER, now)
  end
  return wait and math.max(1, math.ceil(wait))
end

-- ── Refusals ────────────────────────────────────────────────────────────────────────────────────────────────────────

-- This worker's reading of the feed: when it was asked for, and by sale {code, for_seconds, filter}.
local known = { asked_at = 0, refusals = {} }
-- Filters, by sale: {version, bytes, buckets, bits_per_bucket}. Here and not only in the dictionary, because reading them
-- from there copies them.
local filters = {}

-- Returns nil where the filter is not here: then everybody may be a holder.
local function filter_of(sale_id, wanted)
  local key = sale_id .. ":" .. wanted.version
  local filter = filters[sale_id]
  -- One that was given up there is given up here, or they could take more room than there is.
  if filter and not holders:ttl(key) then return nil end
  if not filter or filter.version ~= wanted.version then
    local bytes = holders:get(key)
    if not bytes then return nil end
    filter = { version = wanted.version, bytes = bytes, buckets = wanted.buckets,
               bits_per_bucket = wanted.bitsPerBucket }
  end
  return filter
end

local function read_feed(asked_at)
  local refusals, kept = {}, {}
  local told = cjson.decode(feed:get("refusals") or "") or { refusals = {} }
  for _, refusal in ipairs(told.refusals) do
    local filter = refusal.holders and filter_of(refusal.saleId, refusal.holders)
    if problems.by_code[refusal.code] and (filter or not refusal.holders) then
      kept[refusal.saleId] = filter
      refusals[refusal.saleId] = {
        code = refusal.code,
        for_seconds = math.min(FRESH_FOR, (refusal.forMs or math.huge) / 1000),
        filter = filter,
      }
    end
  end
  filters = kept
  known = { asked_at = asked_at, refusals = refusals }
end

-- What the feed says of a sale; nil for nothing, and where it is too old, or from later than now, as after a clock was set
-- back. (Each worker looks at the clock once for everything that is there to be done, so theirs differ a little.)
local function refusal_of(sale_id, now)
  local asked_at = feed:get("asked_at")
  if not asked_at then return nil end
  if asked_at ~= known.asked_at then read_feed(asked_at) end
  local refusal = known.refusals[sale_id]
  local age = now - asked_at
  if refusal and age > -CLOCKS_DIFFER and age < refusal.for_seconds then return refusal end
  return nil
end

-- Whom a token names; nil where it names nobody, in our grammar. Nothing is verified: who lies is refused what he would not
-- have got anyway, or passed to a gateway that does verify.
local function shopper_of(authorization)
  if not authorization or #authorization > MAX_AUTHORIZATION or sub(authorization, 1, 7) ~= "Bearer " then return nil end
  local payload_at = find(authorization, ".", 8, true)
  local signature_at = payload_at and find(authorization, ".", payload_at + 1, true)
  local text = signature_at and base64.decode_base64url(sub(authorization, payload_at + 1, signature_at - 1))
  local claims = text and cjson.decode(text)
  local subject = type(claims) == "table" and claims.sub
  if type(subject) == "string" and matches(subject, "^[A-Za-z0-9_-]{1,64}$", "joD") then return subject end
  return nil
end

local function uint32(at)
  return ((digest[at] * 256 + digest[at + 1]) * 256 + digest[at + 2]) * 256 + digest[at + 3]
end

-- As mayHold in libs/domain/src/holder-filter.ts. Numbers stay below 2^53, so they are exact.
local function may_hold(filter, shopper)
  ffi.C.SHA256_Init(sha256)
  ffi.C.SHA256_Update(sha256, shopper, #shopper)
  ffi.C.SHA256_Final(digest, sha256)
  local bits = filter.bits_per_bucket
  local base = (uint32(0) % filter.buckets) * bits / 8
  local start, step = uint32(4), uint32(8)
  if step % 2 == 0 then step = step + 1 end
  for i = 0, FILTER_HASHES - 1 do
    local position = (start + i * step) % bits
    local value = byte(filter.bytes, base + math.floor(position / 8) + 1) or 0
    if math.floor(value / 2 ^ (7 - position % 8)) % 2 == 0 then return false end
  end
  return true
end

-- The code with which a new entry is refused; nil for nothing. Only what is certainly a well-formed entry of somebody who
-- certainly holds nothing is refused: its first answer cannot have been another.
local function refusal_code(authorization, now)
  if ngx.req.get_method() ~= "POST" then return nil end
  local var = ngx.var
  -- As it was sent: what nginx makes of it could be another address than the gateway's.
  local uri = var.request_uri
  if sub(uri, 1, 10) ~= "/v1/sales/" or sub(uri, -8) ~= "/entries" then return nil end
  local refusal = refusal_of(sub(uri, 11, -9), now)
  if not refusal then return nil end
  if var.http_x_entry_ticket or var.http_content_encoding then return nil end
  if sub(var.http_content_type or "", 1, 16) ~= "application/json" then return nil end
  local key = var.http_idempotency_key
  if not key or not matches(key, "^[A-Za-z0-9_.-]{1,128}$", "joD") then return nil end
  local shopper = shopper_of(authorization)
  if not shopper or (refusal.filter and may_hold(refusal.filter, shopper)) then return nil end
  return refusal.code
end

-- Ends the request, or returns and lets it pass to a gateway. Rates are counted last: what the feed refuses costs no more
-- than the refusal of what comes too fast.
function M.judge()
  local authorization = ngx.var.http_authorization
  local now = ngx.now()
  -- A defect of this file must not close the sale.
  local ok, code = pcall(refusal_code, authorization, now)
  if not ok then
    ngx.log(ngx.CRIT, "a request could not be judged: ", code)
  elseif code then
    count(code)
    return answer(code)
  end
  local wait = too_fast(authorization, now)
  if wait then
    count("rate_limited")
    return answer("rate_limited", wait)
  end
end

-- ── What nginx itself could not do ──────────────────────────────────────────────────────────────────────────────────

-- Whether no gateway has answered the feed lately; never where there is no feed.
function M.is_feed_silent()
  if not HAS_FEED then return false end
  local asked_at = feed:get("asked_at")
  local age = asked_at and ngx.now() - asked_at
  return not age or age <= -CLOCKS_DIFFER or age >= FRESH_FOR
end

-- Answers with the problem for a status that nginx came to; a person who asked for a page gets one, which comes again by
-- itself.
function M.answer_own_fault(status)
  local code = problems.by_status[status] or "internal"
  count("own_" .. code)
  local var = ngx.var
  local wants_page = (var.request_method == "GET" or var.request_method == "HEAD")
    and match(var.http_accept or "", "text/html") and not match(var.uri, "^/v1/")
  if code ~= "unavailable" or not wants_page then return answer(code) end
  -- Not all at once.
  local retry_after = math.random(3, 8)
  ngx.status = problems.by_code[code].status
  ngx.header["Content-Type"] = "text/html; charset=utf-8"
  ngx.header["Cache-Control"] = "no-store"
  ngx.header["Content-Security-Policy"] = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
  ngx.header["Retry-After"] = retry_after
  local page = BUSY_PAGE:gsub("RETRY_AFTER", retry_after)
  ngx.print(page)
end

-- Prometheus' text.
function M.answer_metrics()
  local lines = {
    "# HELP edge_answers_total Requests that the edge answered itself, by code; own_ where it had to.",
    "# TYPE edge_answers_total counter",
  }
  for _, name in ipairs(counts:get_keys(100)) do
    lines[#lines + 1] = ('edge_answers_total{code="%s"} %d'):format(name, counts:get(name))
  end
  lines[#lines + 1] = "# HELP edge_feed_age_seconds How old what the gateways told is; refusals end at " .. FRESH_FOR .. "."
  lines[#lines + 1] = "# TYPE edge_feed_age_seconds gauge"
  lines[#lines + 1] = "edge_feed_age_seconds " .. (ngx.now() - (feed:get("asked_at") or 0))
  ngx.header["Content-Type"] = "text/plain; version=0.0.4"
  ngx.say(table.concat(lines, "\n"))
end

return M
