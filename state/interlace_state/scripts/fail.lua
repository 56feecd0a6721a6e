-- End a job that nobody will run, and take it off the queue.
-- KEYS  job:{id}  events:{id}  queue:{slug}
-- ARGV  queue entry, end state, last event, lifetime in seconds,
--       milliseconds after which a silent worker has lost its job, or "" to end a job that a worker holds, too
-- Returns 1 if this call ended the job, 0 if a worker holds it, or it had ended or is gone.
-- A job that went to the back of the queue since the caller looked has another entry.
local entry = redis.call("HGET", KEYS[1], "entry") or ARGV[1]
if ARGV[5] ~= "" then
  local held = redis.pcall("XPENDING", KEYS[3], "workers", entry, entry, 1)
  if not held.err and held[1] and held[1][3] < tonumber(ARGV[5]) then return 0 end
end
if redis.call("XDEL", KEYS[3], entry) == 0 then return 0 end
redis.call("XACK", KEYS[3], "workers", entry)
local state = redis.call("HGET", KEYS[1], "state")
if not state or state == "completed" or state == "error" or state == "cancelled" then return 0 end
redis.call("HSET", KEYS[1], "state", ARGV[2], "last", ARGV[3])
local counted = redis.call("HMGET", KEYS[1], "live", "running", "id")
if counted[3] then
  redis.call("SREM", counted[1], counted[3])
  redis.call("SREM", counted[2], counted[3])
end
redis.call("XADD", KEYS[2], "*", "e", ARGV[3])
redis.call("EXPIRE", KEYS[1], ARGV[4])
redis.call("EXPIRE", KEYS[2], ARGV[4])
return 1
