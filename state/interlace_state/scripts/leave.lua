-- A session that followed a job is gone. Cancel the job if it was made for a session and none follows it any more.
-- ARGV  prefix, job id, end state, last event, lifetime in seconds, session id
-- Returns 1 if this call ended the job, 0 if others follow it, it is polled, had ended or is gone.
local name, mine = key("job", ARGV[2]), ARGV[6] .. " "
local job = redis.call("HMGET", name, "state", "sessions", "tenant", "idempotency", "last")
if not job[1] or not job[2] then return 0 end
-- The connection repeats a call whose answer it lost.
if has_ended(job[1]) then return job[2] == mine and job[5] == ARGV[4] and 1 or 0 end
if job[2] ~= mine then
  local others = string.gsub(job[2], mine, "")
  redis.call("HSET", name, "sessions", others)
  return 0
end
close(ARGV[2], ARGV[3], ARGV[4], ARGV[5])
if job[4] then redis.call("DEL", key("idem", job[3], job[4])) end  -- whoever comes back wants the job, not its end
redis.call("PUBLISH", key("cancelled"), ARGV[2])
return 1
