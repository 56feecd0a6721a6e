-- Lease further jobs to the worker that holds one: those that wait next in its tenant's queue, as long as they have all
-- in common with it that must be. The first that differs ends it: a tenant's jobs keep their order.
-- ARGV  prefix, job id, fence, most, worker, this call's token, length of a lease in ms, lifetime in seconds
-- Returns for each what `given` says of it; nothing where the job is not the caller's, or the model or the worker is at
-- rest. A party is no larger than what usually takes ten seconds, or one while other tenants wait.
local id, fence, most, worker, token = ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5], ARGV[6]
local lease, lifetime = tonumber(ARGV[7]), ARGV[8]
local taken = {}
-- The connection repeats a call whose answer it lost.
local told = redis.call("LRANGE", key("picked", token), 0, -1)
for i = 1, #told, 2 do
  if redis.call("HGET", key("job", told[i]), "fence") == told[i + 1] then table.insert(taken, given(told[i])) end
end
if #told > 0 then return taken end

local job = redis.call("HMGET", key("job", id), "fence", "slug", "tenant", "kin", "party", "charged_ms", "state")
local slug, tenant, kin = job[2], job[3], job[4]
if job[1] ~= fence or has_ended(job[7]) or not kin or kin == "" then return {} end
if redis.call("SISMEMBER", key("paused"), slug) == 1 or redis.call("SISMEMBER", key("drained"), worker) == 1 then
  return {}
end

local party = job[5] or id
local members = job[5] and math.max(1, number(redis.call("HGET", key("party", party), "members"))) or 1
local counts, turn = held(slug), 10  -- seconds
for _, other in ipairs(redis.call("ZRANGE", key("turn", slug), 0, -1)) do
  if other ~= tenant and redis.call("XLEN", key("queue", slug, other)) > (counts[other] or 0) then
    turn = 1
    break
  end
end
local usual = math.max(number(redis.call("HGET", key("fair", slug), "seconds")), 0.001)
most = math.min(most, math.floor(turn / usual) - members)

local stream, fences = key("queue", slug, tenant), {}
while #taken < most and not has_its_share(tenant) do
  local next = next_of(slug, tenant)
  if not next then break end
  local is_there = redis.call("EXISTS", key("job", next)) == 1
  if is_there and redis.call("HGET", key("job", next), "kin") ~= kin then break end
  local drawn = redis.call("XREADGROUP", "GROUP", GROUP, GROUP, "COUNT", 1, "STREAMS", stream, ">")
  if is_there then
    give(next, slug, tenant, worker, lease, lifetime)
    redis.call("HSET", key("job", next), "party", party)
    table.insert(fences, next)
    table.insert(fences, redis.call("HGET", key("job", next), "fence"))
    table.insert(taken, next)
  else
    dequeue(drawn[1][2][1][1], slug, tenant)  -- its lifetime was over
  end
end
if #taken == 0 then return {} end

if not job[5] then
  redis.call("HSET", key("job", id), "party", party)
  redis.call("HSET", key("party", party), "charged_ms", job[6])
end
redis.call("HSET", key("party", party), "members", members + #taken)
redis.call("EXPIRE", key("party", party), lifetime)
redis.call("RPUSH", key("picked", token), unpack(fences))
redis.call("EXPIRE", key("picked", token), 60)
for i, one in ipairs(taken) do taken[i] = given(one) end
return taken
