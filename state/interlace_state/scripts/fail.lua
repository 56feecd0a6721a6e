-- End a job that nobody will run, and take it off the queue.
-- ARGV  prefix, job id, end state, last event, lifetime in seconds, "1" to end a job that a worker holds, too
-- Returns 1 if this call ended the job, 0 if a worker holds it, or it had ended or is gone.
local job = redis.call("HMGET", key("job", ARGV[2]), "state", "slug")
if not job[1] or has_ended(job[1]) then return 0 end
local deadline = redis.call("ZSCORE", key("leases", job[2]), ARGV[2])
if ARGV[6] ~= "1" and deadline and tonumber(deadline) > now() then return 0 end
close(ARGV[2], ARGV[3], ARGV[4], ARGV[5])
redis.call("PUBLISH", key("cancelled"), ARGV[2])
return 1
