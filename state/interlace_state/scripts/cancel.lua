-- End a job whether it waits or runs; its worker learns of it at its next sign of life.
-- KEYS  job:{id}  events:{id}
-- ARGV  end state, last event, lifetime in seconds
-- Returns 1 if this call ended the job, 0 if it had ended or is gone.
local state = redis.call("HGET", KEYS[1], "state")
if not state or state == "completed" or state == "error" or state == "cancelled" then return 0 end
redis.call("HSET", KEYS[1], "state", ARGV[1], "last", ARGV[2])
redis.call("XADD", KEYS[2], "*", "e", ARGV[2])
redis.call("EXPIRE", KEYS[1], ARGV[3])
redis.call("EXPIRE", KEYS[2], ARGV[3])
return 1
