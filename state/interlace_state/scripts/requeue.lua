-- Give a leased job back to the end of its queue; the attempt does not count.
-- KEYS  job:{id}  events:{id}  queue:{slug}
-- ARGV  queue entry, fence, event, job id, lifetime in seconds
-- Returns 1 if the job waits again, 0 if it has ended, is another's or is gone.
local job = redis.call("HMGET", KEYS[1], "state", "fence")
if job[2] ~= ARGV[2] or job[1] == "completed" or job[1] == "error" or job[1] == "cancelled" then return 0 end
redis.call("XACK", KEYS[3], "workers", ARGV[1])
redis.call("XDEL", KEYS[3], ARGV[1])
redis.call("HINCRBY", KEYS[1], "fence", 1)
redis.call("HINCRBY", KEYS[1], "attempts", -1)
redis.call("HSET", KEYS[1], "state", "queued", "last", ARGV[3])
redis.call("XADD", KEYS[2], "*", "e", ARGV[3])
redis.call("HSET", KEYS[1], "entry", redis.call("XADD", KEYS[3], "*", "job", ARGV[4]))
local running = redis.call("HGET", KEYS[1], "running")
if running then redis.call("SREM", running, ARGV[4]) end
redis.call("EXPIRE", KEYS[1], ARGV[5])
redis.call("EXPIRE", KEYS[2], ARGV[5])
return 1
