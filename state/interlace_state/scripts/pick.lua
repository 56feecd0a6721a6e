-- Lease the next job of a model to a worker: one whose worker has gone silent, else the first of the tenant that has
-- used least and may run one more.
-- ARGV  prefix, slug, worker, this call's token, length of a lease in ms, lifetime in seconds
-- Returns what `given` says of it, nil if there is none that may run, -1 if the model or the worker is at rest.
local slug, worker, token, lease, lifetime = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5]), ARGV[6]
local leases, turn, fair = key("leases", slug), key("turn", slug), key("fair", slug)

-- The connection repeats a call whose answer it lost.
local picked = redis.call("HMGET", key("picked", token), "job", "fence")
if picked[1] and redis.call("HGET", key("job", picked[1]), "fence") == picked[2] then return given(picked[1]) end
if redis.call("SISMEMBER", key("paused"), slug) == 1 or redis.call("SISMEMBER", key("drained"), worker) == 1 then
  return -1
end

local full = {}
local function is_full(tenant)
  if full[tenant] == nil then full[tenant] = has_its_share(tenant) end
  return full[tenant]
end

local function take(id, tenant)
  give(id, slug, tenant, worker, lease, lifetime)
  redis.call("HSET", key("picked", token), "job", id, "fence", redis.call("HGET", key("job", id), "fence"))
  redis.call("EXPIRE", key("picked", token), 60)
  return given(id)
end

-- The tenant's next job that was given back to run alone, if there is one.
local function next_apart(tenant)
  while true do
    local id = redis.call("LPOP", key("apart", slug, tenant))
    if not id then return nil end
    local is_held = redis.call("ZSCORE", leases, id)
    if redis.call("HGET", key("job", id), "state") == "queued" and not is_held then return id end
  end
end

local time = now()
-- The clock went back: no lease is longer than one.
for _, id in ipairs(redis.call("ZRANGE", leases, "(" .. time + lease, "+inf", "BYSCORE", "LIMIT", 0, 100)) do
  redis.call("ZADD", leases, time + lease, id)
end
for _, id in ipairs(redis.call("ZRANGE", leases, "-inf", time, "BYSCORE", "LIMIT", 0, 1000)) do
  local job = redis.call("HMGET", key("job", id), "tenant", "state")
  if not job[1] or has_ended(job[2]) then
    redis.call("ZREM", leases, id)
  elseif redis.call("SISMEMBER", key("running", job[1]), id) == 1 then
    charge(id, slug, job[1])
    return take(id, job[1])
  elseif not is_full(job[1]) then
    return take(id, job[1])
  end
end

-- Who runs already is taken to use what a job of this model usually does.
local counts = held(slug)
local usual = math.max(number(redis.call("HGET", fair, "seconds")), 0.001)
local waiting = {}
local scored = redis.call("ZRANGE", turn, 0, -1, "WITHSCORES")
for i = 1, #scored, 2 do
  local tenant, virtual = scored[i], tonumber(scored[i + 1])
  local ahead = (counts[tenant] or 0) * usual / weight_of(tenant)
  local since = number(redis.call("HGET", fair, "since:" .. tenant))
  table.insert(waiting, {tenant = tenant, virtual = virtual, order = virtual + ahead, since = since})
end
table.sort(waiting, function(a, b) return a.order < b.order or (a.order == b.order and a.since < b.since) end)
for _, one in ipairs(waiting) do
  local stream = key("queue", slug, one.tenant)
  while not is_full(one.tenant) do
    local alone = next_apart(one.tenant)
    if alone then return take(alone, one.tenant) end
    local drawn = redis.call("EXISTS", stream) == 1
      and redis.call("XREADGROUP", "GROUP", GROUP, GROUP, "COUNT", 1, "STREAMS", stream, ">")
    if not drawn then
      redis.call("ZREM", turn, one.tenant)
      break
    end
    local entry, id = drawn[1][2][1][1], drawn[1][2][1][2][2]
    if redis.call("EXISTS", key("job", id)) == 1 then
      if one.virtual > number(redis.call("HGET", fair, "clock")) then
        redis.call("HSET", fair, "clock", exact(one.virtual))
      end
      return take(id, one.tenant)
    end
    dequeue(entry, slug, one.tenant)  -- its lifetime was over
    if redis.call("EXISTS", stream) == 0 then break end
  end
  -- Who may not run now has no claim on it later.
  local clock = number(redis.call("HGET", fair, "clock"))
  if full[one.tenant] and one.virtual < clock then
    redis.call("HSET", fair, "t:" .. one.tenant, exact(clock))
    redis.call("ZADD", turn, "XX", exact(clock), one.tenant)
  end
end
redis.call("DEL", key("wake", slug))
return false
