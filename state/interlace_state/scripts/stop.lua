-- Ask a job that a worker holds to end with what it has, and tell its worker. Once.
-- ARGV  prefix, job id, event that says so
-- Returns 1 if this call has asked, 0 if no worker holds it, it was asked before, has ended or is gone.
local name = key("job", ARGV[2])
local job = redis.call("HMGET", name, "state", "slug", "stopping", "tenant")
if not job[1] or has_ended(job[1]) or job[3] then return 0 end
local deadline = redis.call("ZSCORE", key("leases", job[2]), ARGV[2])
if not deadline or tonumber(deadline) <= now() then return 0 end
redis.call("HSET", name, "stopping", 1, "last", ARGV[3])
tell(ARGV[2], job[4], ARGV[3])
redis.call("PUBLISH", key("stopping"), ARGV[2])
return 1
