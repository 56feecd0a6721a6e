-- Accept a job: all of it or nothing.
-- ARGV  prefix, job id, record, first event with "{place}" in its text, lifetime in seconds, most waiting,
--       session id or "", tenant, most running, slug, digest of the idempotency key or "", digest of the payload,
--       most kept, what jobs that may share a forward have in common or "", digest of the model's card as it was read
--       or "", a replica that was ready then
-- Returns {place, job id}; or -1: no such session, -2: the session has a job, -3: the queue is full,
-- -4: another payload was sent under this idempotency key, -5: the model has changed.
local id, lifetime, session, tenant, slug, again = ARGV[2], ARGV[5], ARGV[7], ARGV[8], ARGV[10], ARGV[11]
local live = key("live", slug, tenant)
-- Among the tenant's jobs that wait, from 1.
local function place(which)
  local counts = held(slug)
  return math.max(0, (redis.call("ZRANK", live, which) or 0) - (counts[tenant] or 0)) + 1
end

-- The connection repeats a call whose answer it lost: the job is in already.
if redis.call("EXISTS", key("job", id)) == 1 then return {place(id), id} end
if ARGV[15] ~= "" then
  local card, sign = redis.call("HGET", key("models"), slug), redis.call("GET", key("replica", slug, ARGV[16]))
  if not card or redis.sha1hex(card) ~= ARGV[15] then return -5 end
  if not sign or not string.find(sign, '"state":"ready"', 1, true) then return -5 end
end
local former = again ~= "" and redis.call("HMGET", key("idem", tenant, again), "job", "payload") or {}
local is_known = former[1] and redis.call("EXISTS", key("job", former[1])) == 1
local has_it = false
if session ~= "" then
  local said = redis.call("XRANGE", key("session", session), "-", "+", "COUNT", 2)
  if not said[1] or said[1][2][2] ~= tenant then return -1 end
  has_it = is_known and said[2] and said[2][2][2] == former[1]  -- a call that is repeated, by the connection or the client
  if said[2] and not has_it then return -2 end
end
if is_known then
  if former[2] ~= ARGV[12] then return -4 end
  if session == "" then
    redis.call("HDEL", key("job", former[1]), "sessions")  -- it is polled now
  elseif not has_it then
    redis.call("XADD", key("session", session), "*", "job", former[1])
    local followers = redis.call("HGET", key("job", former[1]), "sessions")
    if followers then redis.call("HSET", key("job", former[1]), "sessions", followers .. session .. " ") end
  end
  return {place(former[1]), former[1]}
end
if redis.call("ZCARD", live) >= tonumber(ARGV[6]) then
  -- A job whose lifetime was over before its end is counted no more.
  for _, other in ipairs(redis.call("ZRANGE", live, 0, 99)) do
    if redis.call("EXISTS", key("job", other)) == 0 then redis.call("ZREM", live, other) end
  end
  if redis.call("ZCARD", live) >= tonumber(ARGV[6]) then return -3 end
end
local time = now()
local counts = held(slug)
local first = string.gsub(ARGV[4], "{place}", redis.call("ZCARD", live) - (counts[tenant] or 0) + 1)
redis.call("HSET", key("job", id), "record", ARGV[3], "state", "queued", "last", first, "attempts", 0, "fence", 0,
  "id", id, "tenant", tenant, "slug", slug, "submitted_ms", time, "kin", ARGV[14])
redis.call("HSET", key("shares"), tenant, ARGV[9])
redis.call("ZADD", live, redis.call("HINCRBY", key("fair", slug), "submitted", 1), id)
tell(id, tenant, first)
enqueue(id, slug, tenant)
for _, index in ipairs({key("jobs"), key("jobs", tenant)}) do redis.call("ZADD", index, time, id) end
local over = redis.call("ZCARD", key("jobs", tenant)) - tonumber(ARGV[13])
if over > 0 then
  local gone, from = {}, 0
  while #gone < math.min(over, 10) and from < 1000 do  -- behind so many that wait, none is looked for
    for _, old in ipairs(redis.call("ZRANGE", key("jobs", tenant), from, from + 9)) do
      local state = redis.call("HGET", key("job", old), "state")
      if #gone < math.min(over, 10) and (not state or has_ended(state)) then table.insert(gone, old) end
    end
    from = from + 10
  end
  for _, old in ipairs(gone) do  -- the collector removes their results
    redis.call("DEL", key("job", old), key("events", old))
    for _, index in ipairs({key("jobs"), key("jobs", tenant)}) do redis.call("ZREM", index, old) end
  end
end
if again ~= "" then
  redis.call("HSET", key("job", id), "idempotency", again)
  redis.call("HSET", key("idem", tenant, again), "job", id, "payload", ARGV[12])
  redis.call("EXPIRE", key("idem", tenant, again), lifetime)
end
keep(id, slug, tenant, lifetime)
if session ~= "" then
  redis.call("XADD", key("session", session), "*", "job", id)
  redis.call("HSET", key("job", id), "sessions", session .. " ")
end
return {place(id), id}
