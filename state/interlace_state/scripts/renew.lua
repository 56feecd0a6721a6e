-- A worker's sign of life for the job that it holds. Never takes a job from another.
-- KEYS  job:{id}  events:{id}  queue:{slug}
-- ARGV  queue entry, worker, fence, lifetime in seconds
-- Returns 1 if the lease is renewed, 0 if it is no longer this worker's.
local job = redis.call("HMGET", KEYS[1], "state", "fence")
if job[2] ~= ARGV[3] or job[1] == "completed" or job[1] == "error" or job[1] == "cancelled" then return 0 end
local held = redis.pcall("XPENDING", KEYS[3], "workers", ARGV[1], ARGV[1], 1)
if held.err or not held[1] or held[1][2] ~= ARGV[2] then return 0 end
redis.call("XCLAIM", KEYS[3], "workers", ARGV[2], 0, ARGV[1], "JUSTID")
redis.call("EXPIRE", KEYS[1], ARGV[4])
redis.call("EXPIRE", KEYS[2], ARGV[4])
return 1
