-- End a job whether it waits or runs, and take it off the queue; its worker learns of it at its next sign of life.
-- KEYS  job:{id}  events:{id}
-- ARGV  end state, last event, lifetime in seconds
-- Returns 1 if this call ended the job, 0 if it had ended or is gone.
local state = redis.call("HGET", KEYS[1], "state")
if not state or state == "completed" or state == "error" or state == "cancelled" then return 0 end
redis.call("HSET", KEYS[1], "state", ARGV[1], "last", ARGV[2])
local place = redis.call("HMGET", KEYS[1], "queue", "entry")
if place[2] then
  redis.pcall("XACK", place[1], "workers", place[2])
  redis.call("XDEL", place[1], place[2])
end
local counted = redis.call("HMGET", KEYS[1], "live", "running", "id")
if counted[3] then
  redis.call("SREM", counted[1], counted[3])
  redis.call("SREM", counted[2], counted[3])
end
redis.call("XADD", KEYS[2], "*", "e", ARGV[2])
redis.call("EXPIRE", KEYS[1], ARGV[3])
redis.call("EXPIRE", KEYS[2], ARGV[3])
return 1
