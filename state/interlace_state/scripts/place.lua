-- Where a job stands that waits.
-- ARGV  prefix, job id
-- Returns {jobs that will start before it, seconds until it starts as text or "", why it would wait if none did or "",
-- what belongs to that}, or nil if it does not wait. Others' jobs go first as far as their virtual time lets them, if each takes what a job of this model
-- usually does. One that has run for longer is taken to run as long again.
local id = ARGV[2]
local job = redis.call("HMGET", key("job", id), "state", "slug", "tenant")
if job[1] ~= "queued" then return false end
local slug, tenant = job[2], job[3]
local counts, all = held(slug)
local deadline = redis.call("ZSCORE", key("leases", slug), id)
local known = redis.call("HGET", key("fair", slug), "seconds")
local usual = math.max(number(known), 0.001)
local ahead = 0
if not deadline then  -- else it was given back, and is the next
  local own = math.max(0, (redis.call("ZRANK", key("live", slug, tenant), id) or 0) - (counts[tenant] or 0))
  local function virtual(who)
    return number(redis.call("HGET", key("fair", slug), "t:" .. who)) + (counts[who] or 0) * usual / weight_of(who)
  end
  local function since(who) return number(redis.call("HGET", key("fair", slug), "since:" .. who)) end
  local mine = virtual(tenant) + own * usual / weight_of(tenant)
  ahead = own
  for _, other in ipairs(redis.call("ZRANGE", key("turn", slug), 0, -1)) do
    if other ~= tenant then
      local waits = redis.call("XLEN", key("queue", slug, other)) - (counts[other] or 0)
      local steps = (mine - virtual(other)) * weight_of(other) / usual
      local before = math.ceil(steps)
      if steps == before and since(other) < since(tenant) then before = before + 1 end
      ahead = ahead + math.max(0, math.min(waits, before))
    end
  end
end

-- What keeps it from being taken, whoever is before it.
local function why()
  if deadline and number(deadline) > 0 then return "", "" end  -- it is being taken
  if redis.call("SISMEMBER", key("paused"), slug) == 1 then return "paused", "" end
  local ready, taking = 0, 0
  for _, replica in ipairs(redis.call("SMEMBERS", key("replicas", slug))) do
    local sign = redis.call("GET", key("replica", slug, replica))
    if sign and string.find(sign, '"state":"ready"', 1, true) then
      ready = ready + 1
      if redis.call("SISMEMBER", key("drained"), replica) == 0 then taking = taking + 1 end
    end
  end
  if ready == 0 then
    local moment = redis.call("HGET", key("moments"), slug)
    if moment then return "model", moment end
  elseif taking == 0 then
    return "drained", ""
  end
  if has_its_share(tenant) then return "limit", tostring(redis.call("SCARD", key("running", tenant))) end
  return "", ""
end

local reason, detail = why()
if not known or all == 0 or (reason ~= "" and reason ~= "limit") then return {ahead, "", reason, detail} end
local time, first = now(), nil
for _, other in ipairs(redis.call("ZRANGE", key("leases", slug), "(0", "+inf", "BYSCORE", "LIMIT", 0, 100)) do
  local taken = number(redis.call("HGET", key("job", other), "taken_ms"))
  local ran = math.max(0, time - taken) / 1000
  local left = ran <= usual and usual - ran or ran
  if not first or left < first then first = left end
end
local at_a_time = math.max(1, math.min(all, share_of(tenant)))
return {ahead, exact((first or 0) + ahead * usual / at_a_time), reason, detail}
