-- Add events that are not the last, if the job is still the caller's.
-- ARGV  prefix, job id, fence, this call's token, then for each event: the state that it leads to, "progress", "picture"
--       or "", the event
-- Returns 1 if the job is the caller's, 0 if it has ended, is another's or is gone.
local name = key("job", ARGV[2])
local job = redis.call("HMGET", name, "state", "fence", "recorded", "tenant")
if job[2] ~= ARGV[3] or has_ended(job[1]) then return 0 end
-- The connection repeats a call whose answer it lost: the events are in already.
if job[3] == ARGV[4] then return 1 end
redis.call("HSET", name, "recorded", ARGV[4])
for i = 5, #ARGV, 2 do
  if ARGV[i] == "" then  -- a line of its log: its tenant's list does not show it
    redis.call("XADD", key("events", ARGV[2]), "*", "e", ARGV[i + 1])
  else
    tell(ARGV[2], job[4], ARGV[i + 1])
  end
  if ARGV[i] == "progress" or ARGV[i] == "picture" then
    redis.call("HSET", name, ARGV[i], ARGV[i + 1])
  elseif ARGV[i] ~= "" then
    redis.call("HSET", name, "state", ARGV[i], "last", ARGV[i + 1])
  end
  if ARGV[i] == "running" then redis.call("HSET", name, "started_ms", now()) end
end
return 1
