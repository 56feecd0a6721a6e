-- Where a job stands that waits.
-- ARGV  prefix, job id
-- Returns {jobs that will start before it, seconds until it starts as text or "", 1 if the model is paused}, or nil if it
-- does not wait. Others' jobs go first as far as their virtual time lets them, if each takes what a job of this model
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
local paused = redis.call("SISMEMBER", key("paused"), slug)
if not known or all == 0 or paused == 1 then return {ahead, "", paused} end
local time, first = now(), nil
for _, other in ipairs(redis.call("ZRANGE", key("leases", slug), "(0", "+inf", "BYSCORE", "LIMIT", 0, 100)) do
  local taken = number(redis.call("HGET", key("job", other), "taken_ms"))
  local ran = math.max(0, time - taken) / 1000
  local left = ran <= usual and usual - ran or ran
  if not first or left < first then first = left end
end
local at_a_time = math.max(1, math.min(all, share_of(tenant)))
return {ahead, exact((first or 0) + ahead * usual / at_a_time), 0}
