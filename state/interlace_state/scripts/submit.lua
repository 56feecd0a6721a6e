-- Accept a job: all of it or nothing.
-- ARGV  prefix, job id, record, first event with "{place}" in its text, lifetime in seconds, most waiting,
--       session id or "", tenant, most running, slug, digest of the idempotency key or "", digest of the payload
-- Returns {place, job id}; or -1: no such session, -2: the session has a job, -3: the queue is full,
-- -4: another payload was sent under this idempotency key.
local id, lifetime, session, tenant, slug, again = ARGV[2], ARGV[5], ARGV[7], ARGV[8], ARGV[10], ARGV[11]
local live = key("live", slug, tenant)
local function place(which) return (redis.call("ZRANK", live, which) or 0) + 1 end

-- The connection repeats a call whose answer it lost: the job is in already.
if redis.call("EXISTS", key("job", id)) == 1 then return {place(id), id} end
if session ~= "" then
  local first = redis.call("XRANGE", key("session", session), "-", "+", "COUNT", 1)[1]
  if not first or first[2][2] ~= tenant then return -1 end
  if redis.call("XLEN", key("session", session)) > 1 then return -2 end
end
local former = again ~= "" and redis.call("HMGET", key("idem", tenant, again), "job", "payload") or {}
if former[1] and redis.call("EXISTS", key("job", former[1])) == 1 then
  if former[2] ~= ARGV[12] then return -4 end
  if session ~= "" then redis.call("XADD", key("session", session), "*", "job", former[1]) end
  return {place(former[1]), former[1]}
end
if redis.call("ZCARD", live) >= tonumber(ARGV[6]) then
  -- A job whose lifetime was over before its end is counted no more.
  for _, other in ipairs(redis.call("ZRANGE", live, 0, -1)) do
    if redis.call("EXISTS", key("job", other)) == 0 then redis.call("ZREM", live, other) end
  end
  if redis.call("ZCARD", live) >= tonumber(ARGV[6]) then return -3 end
end
local time = now()
local first = string.gsub(ARGV[4], "{place}", redis.call("ZCARD", live) + 1)
redis.call("HSET", key("job", id), "record", ARGV[3], "state", "queued", "last", first, "attempts", 0, "fence", 0,
  "id", id, "tenant", tenant, "slug", slug, "submitted_ms", time)
redis.call("HSET", key("shares"), tenant, ARGV[9])
redis.call("ZADD", live, redis.call("HINCRBY", key("fair", slug), "submitted", 1), id)
redis.call("XADD", key("events", id), "*", "e", first)
enqueue(id, slug, tenant)
for _, index in ipairs({key("jobs"), key("jobs", tenant)}) do redis.call("ZADD", index, time, id) end
if again ~= "" then
  redis.call("HSET", key("job", id), "idempotency", again)
  redis.call("HSET", key("idem", tenant, again), "job", id, "payload", ARGV[12])
  redis.call("EXPIRE", key("idem", tenant, again), lifetime)
end
keep(id, slug, tenant, lifetime)
if session ~= "" then redis.call("XADD", key("session", session), "*", "job", id) end
return {place(id), id}
