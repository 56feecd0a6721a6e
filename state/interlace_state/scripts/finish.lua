-- End a job once, whoever comes first, and take it off the queue.
-- KEYS  job:{id}  events:{id}  queue:{slug}
-- ARGV  queue entry, end state, last event, lifetime in seconds
-- Returns 1 if this call ended the job, 0 if it had ended or is unknown.
redis.call("XACK", KEYS[3], "workers", ARGV[1])
redis.call("XDEL", KEYS[3], ARGV[1])
local state = redis.call("HGET", KEYS[1], "state")
if not state or state == "completed" or state == "error" or state == "cancelled" then return 0 end
redis.call("HSET", KEYS[1], "state", ARGV[2], "last", ARGV[3])
redis.call("XADD", KEYS[2], "*", "e", ARGV[3])
redis.call("EXPIRE", KEYS[1], ARGV[4])
redis.call("EXPIRE", KEYS[2], ARGV[4])
return 1
