-- Accept a job: all of it or nothing.
-- KEYS  job:{id}  events:{id}  queue:{slug}  session:{sid} (or a key that never is)  live:{slug}:{tenant}
--       running:{tenant}
-- ARGV  job id, record, first event with "{place}" in its text, lifetime in seconds, most waiting,
--       "1" if a session waits for it, tenant, most running
-- Returns the job's place in the queue, or -1: no such session, -2: the session has a job, -3: the queue is full.
-- The connection repeats a call whose answer it lost: the job is in already.
if redis.call("EXISTS", KEYS[1]) == 1 then return redis.call("XLEN", KEYS[3]) end
if ARGV[6] == "1" then
  local first = redis.call("XRANGE", KEYS[4], "-", "+", "COUNT", 1)[1]
  if not first or first[2][2] ~= ARGV[7] then return -1 end
  if redis.call("XLEN", KEYS[4]) > 1 then return -2 end
end
if redis.call("SCARD", KEYS[5]) >= tonumber(ARGV[5]) then
  -- A job whose lifetime was over before its end is counted no more.
  local jobs = string.sub(KEYS[1], 1, -#ARGV[1] - 1)
  for _, id in ipairs(redis.call("SMEMBERS", KEYS[5])) do
    if redis.call("EXISTS", jobs .. id) == 0 then redis.call("SREM", KEYS[5], id) end
  end
  if redis.call("SCARD", KEYS[5]) >= tonumber(ARGV[5]) then return -3 end
end
local first = string.gsub(ARGV[3], "{place}", redis.call("XLEN", KEYS[3]) + 1)
redis.call("HSET", KEYS[1], "record", ARGV[2], "state", "queued", "last", first, "attempts", 0, "fence", 0, "id", ARGV[1],
  "tenant", ARGV[7], "queue", KEYS[3], "live", KEYS[5], "running", KEYS[6], "most_running", ARGV[8])
redis.call("SADD", KEYS[5], ARGV[1])
redis.call("EXPIRE", KEYS[5], ARGV[4])
redis.call("XADD", KEYS[2], "*", "e", first)
redis.call("EXPIRE", KEYS[1], ARGV[4])
redis.call("EXPIRE", KEYS[2], ARGV[4])
redis.call("HSET", KEYS[1], "entry", redis.call("XADD", KEYS[3], "*", "job", ARGV[1]))
if ARGV[6] == "1" then redis.call("XADD", KEYS[4], "*", "job", ARGV[1]) end
return redis.call("XLEN", KEYS[3])
