-- A session that followed a job is gone. Cancel the job if it was made for a session and none follows it any more.
-- ARGV  prefix, job id, end state, last event, lifetime in seconds
-- Returns 1 if this call ended the job, 0 if others follow it, it is polled, had ended or is gone.
local job = redis.call("HMGET", key("job", ARGV[2]), "state", "followers", "tenant", "idempotency")
if not job[1] or has_ended(job[1]) or not job[2] then return 0 end
if redis.call("HINCRBY", key("job", ARGV[2]), "followers", -1) > 0 then return 0 end
close(ARGV[2], ARGV[3], ARGV[4], ARGV[5])
if job[4] then redis.call("DEL", key("idem", job[3], job[4])) end  -- whoever comes back wants the job, not its end
redis.call("PUBLISH", key("cancelled"), ARGV[2])
return 1
