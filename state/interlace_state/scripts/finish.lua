-- End a job once and take it off the queue, if the caller may.
-- KEYS  job:{id}  events:{id}  queue:{slug}
-- ARGV  queue entry, fence, end state, last event, lifetime in seconds
-- Returns 1 if this lease ended the job, 0 if somebody else had ended it, it is another's or is gone.
local job = redis.call("HMGET", KEYS[1], "state", "fence", "last")
if job[2] ~= ARGV[2] then return 0 end
if job[1] == "completed" or job[1] == "error" or job[1] == "cancelled" then
  -- The connection repeats a call whose answer it lost.
  return job[3] == ARGV[4] and 1 or 0
end
redis.call("HSET", KEYS[1], "state", ARGV[3], "last", ARGV[4])
local counted = redis.call("HMGET", KEYS[1], "live", "running", "id")
if counted[3] then
  redis.call("SREM", counted[1], counted[3])
  redis.call("SREM", counted[2], counted[3])
end
redis.call("XADD", KEYS[2], "*", "e", ARGV[4])
redis.call("EXPIRE", KEYS[1], ARGV[5])
redis.call("EXPIRE", KEYS[2], ARGV[5])
redis.call("XACK", KEYS[3], "workers", ARGV[1])
redis.call("XDEL", KEYS[3], ARGV[1])
return 1
