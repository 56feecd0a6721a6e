-- What the queue's scripts share; put before each of them. ARGV[1] is the prefix of all keys.
-- Virtual time is used seconds over a tenant's weight; the tenant with the least goes next. The clock is the virtual
-- time of the last tenant that went; one that comes back from a pause starts there, with no claim on what it missed.
local prefix = ARGV[1]
local GROUP = "workers"

local function key(...) return prefix .. table.concat({...}, ":") end
local function number(text) return tonumber(text or "0") or 0 end
local function exact(value) return string.format("%.17g", value) end

local function now()
  local time = redis.call("TIME")
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function has_ended(state) return state == "completed" or state == "error" or state == "cancelled" end

local function weight_of(tenant)
  local name = redis.call("HEXISTS", key("weights"), tenant) == 1 and key("weights") or key("weights", "configured")
  local weight = number(redis.call("HGET", name, tenant))
  return weight > 0 and weight or 1
end

-- How many jobs a tenant may run at a time: what an operator has set, else what its last request came with.
local function share_of(tenant)
  return number(redis.call("HGET", key("shares", "set"), tenant) or redis.call("HGET", key("shares"), tenant))
end

local function wake(slug)
  redis.call("LPUSH", key("wake", slug), "1")
  redis.call("LTRIM", key("wake", slug), 0, 63)
  redis.call("EXPIRE", key("wake", slug), 60)
end

-- Count what a job that is held has used since it was last counted: never less than nothing and never more than its
-- worker may be silent, whatever the clock does. Jobs of a party run together: each has used its part, and the tenant
-- what has passed since any of them was counted.
local function charge(id, slug, tenant)
  local job = redis.call("HMGET", key("job", id), "charged_ms", "lease_ms", "party")
  if not job[1] then return end
  local time = now()
  local used = math.max(1, math.min(time - number(job[1]), number(job[2])))
  local own = used
  local party = job[3] and redis.call("HMGET", key("party", job[3]), "charged_ms", "members")
  if party and party[1] then
    own = math.ceil(used / math.max(1, number(party[2])))
    used = math.max(0, math.min(time - number(party[1]), number(job[2])))
    redis.call("HSET", key("party", job[3]), "charged_ms", time)
  end
  redis.call("HSET", key("job", id), "charged_ms", time)
  redis.call("HINCRBY", key("job", id), "used_ms", own)
  local mine = number(redis.call("HGET", key("fair", slug), "t:" .. tenant)) + used / 1000 / weight_of(tenant)
  redis.call("HSET", key("fair", slug), "t:" .. tenant, exact(mine))
  redis.call("ZADD", key("turn", slug), "XX", exact(mine), tenant)
end

-- Write one of a job's events, and tell whoever looks at its tenant's jobs.
local function tell(id, tenant, event)
  redis.call("XADD", key("events", id), "*", "e", event)
  redis.call("PUBLISH", key("changed", tenant), id)
end

-- Put a tenant among those that wait for their turn.
local function await_turn(slug, tenant)
  if redis.call("ZSCORE", key("turn", slug), tenant) then return end
  local clock = number(redis.call("HGET", key("fair", slug), "clock"))
  local mine = math.max(clock, number(redis.call("HGET", key("fair", slug), "t:" .. tenant)))
  redis.call("HSET", key("fair", slug), "t:" .. tenant, exact(mine))
  redis.call("ZADD", key("turn", slug), exact(mine), tenant)
  redis.call("HSET", key("fair", slug), "since:" .. tenant, redis.call("HINCRBY", key("fair", slug), "turns", 1))
end

-- Put a job at the end of its tenant's queue, and the tenant among those that wait for their turn.
local function enqueue(id, slug, tenant)
  local stream = key("queue", slug, tenant)
  if redis.call("EXISTS", stream) == 0 then
    redis.call("XGROUP", "CREATE", stream, GROUP, "0", "MKSTREAM")
    redis.call("SADD", key("tenants", slug), tenant)
  end
  redis.call("HSET", key("job", id), "entry", redis.call("XADD", stream, "*", "job", id))
  await_turn(slug, tenant)
  wake(slug)
end

-- Take an entry out of its stream; an empty stream goes whole, with its group.
local function dequeue(entry, slug, tenant)
  local stream = key("queue", slug, tenant)
  redis.pcall("XACK", stream, GROUP, entry)
  redis.call("XDEL", stream, entry)
  if redis.call("XLEN", stream) == 0 then
    redis.call("DEL", stream)
    redis.call("SREM", key("tenants", slug), tenant)
    redis.call("ZREM", key("turn", slug), tenant)
  end
end

-- Write a job's last event and take it out of everything that counts it. The caller has looked that it has not ended.
local function close(id, state, event, lifetime)
  local name = key("job", id)
  local job = redis.call("HMGET", name, "slug", "tenant", "entry", "idempotency")
  local slug, tenant = job[1], job[2]
  redis.call("HSET", name, "state", state, "last", event, "ended_ms", now())
  if redis.call("ZREM", key("leases", slug), id) == 1 then
    charge(id, slug, tenant)
    wake(slug)
  end
  dequeue(job[3], slug, tenant)
  redis.call("ZREM", key("live", slug, tenant), id)
  redis.call("SREM", key("running", tenant), id)
  tell(id, tenant, event)
  redis.call("EXPIRE", name, lifetime)
  redis.call("EXPIRE", key("events", id), lifetime)
  if job[4] then redis.call("EXPIRE", key("idem", tenant, job[4]), lifetime) end
end

-- Keep what a job that has not ended needs.
local function keep(id, slug, tenant, lifetime)
  for _, name in ipairs({key("job", id), key("events", id), key("live", slug, tenant), key("running", tenant)}) do
    redis.call("EXPIRE", name, lifetime)
  end
end

-- How many jobs of each tenant are held by workers of a model, and how many by all.
local function held(slug)
  local counts, all = {}, 0
  for _, id in ipairs(redis.call("ZRANGE", key("leases", slug), "(0", "+inf", "BYSCORE")) do
    local tenant = redis.call("HGET", key("job", id), "tenant")
    if tenant then
      counts[tenant] = (counts[tenant] or 0) + 1
      all = all + 1
    end
  end
  return counts, all
end

-- The tenant's job that nobody has had and that comes next, if there is one.
local function next_of(slug, tenant)
  local stream = key("queue", slug, tenant)
  if redis.call("EXISTS", stream) == 0 then return nil end
  for _, group in ipairs(redis.call("XINFO", "GROUPS", stream)) do
    for i = 1, #group, 2 do
      if group[i] == "last-delivered-id" then
        local entry = redis.call("XRANGE", stream, "(" .. group[i + 1], "+", "COUNT", 1)[1]
        return entry and entry[2][2]
      end
    end
  end
end

-- Whether a tenant runs as many jobs as it may.
local function has_its_share(tenant)
  local running, most = key("running", tenant), share_of(tenant)
  if redis.call("SCARD", running) >= most then
    -- A job whose lifetime was over before its end is counted no more.
    for _, id in ipairs(redis.call("SMEMBERS", running)) do
      if redis.call("EXISTS", key("job", id)) == 0 then redis.call("SREM", running, id) end
    end
  end
  return redis.call("SCARD", running) >= most
end

-- Give a job to a worker, for a lease of so many ms.
local function give(id, slug, tenant, worker, lease, lifetime)
  local time, name = now(), key("job", id)
  redis.call("ZADD", key("leases", slug), time + lease, id)
  redis.call("SADD", key("running", tenant), id)
  redis.call("HINCRBY", name, "attempts", 1)
  redis.call("HINCRBY", name, "fence", 1)
  redis.call("HSET", name, "worker", worker, "charged_ms", time, "taken_ms", time, "lease_ms", lease)
  redis.call("HDEL", name, "party")
  keep(id, slug, tenant, lifetime)
end

-- What a worker gets told of a job that it was given: {record, attempts, fence, 1 if one waits next that may join it,
-- the limits that an operator has set for its tenant or ""}.
local function given(id)
  local job = redis.call("HMGET", key("job", id), "record", "attempts", "fence", "kin", "slug", "tenant")
  local next = job[4] and job[4] ~= "" and next_of(job[5], job[6])
  local joins = next and redis.call("HGET", key("job", next), "kin") == job[4]
  local set = redis.call("HGET", key("limits"), job[6]) or ""
  return {job[1], tonumber(job[2]), tonumber(job[3]), joins and 1 or 0, set}
end
