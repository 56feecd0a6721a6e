-- End a job whether it waits or runs, take it off the queue, and tell its worker.
-- ARGV  prefix, job id, end state, last event, lifetime in seconds
-- Returns 1 if this call ended the job, 0 if it had ended or is gone.
local state = redis.call("HGET", key("job", ARGV[2]), "state")
if not state or has_ended(state) then return 0 end
close(ARGV[2], ARGV[3], ARGV[4], ARGV[5])
redis.call("PUBLISH", key("cancelled"), ARGV[2])
return 1
