-- End a job once and take it off the queue, if the caller may.
-- ARGV  prefix, job id, fence, end state, last event, lifetime in seconds
-- Returns 1 if this lease ended the job, 0 if somebody else had ended it, it is another's or is gone.
local job = redis.call("HMGET", key("job", ARGV[2]), "state", "fence", "last", "slug")
if job[2] ~= ARGV[3] then return 0 end
-- The connection repeats a call whose answer it lost.
if has_ended(job[1]) then return job[3] == ARGV[5] and 1 or 0 end
close(ARGV[2], ARGV[4], ARGV[5], ARGV[6])
local used = number(redis.call("HGET", key("job", ARGV[2]), "used_ms")) / 1000
local usual = redis.call("HGET", key("fair", job[4]), "seconds")
redis.call("HSET", key("fair", job[4]), "seconds", exact(usual and 0.8 * number(usual) + 0.2 * used or used))
return 1
