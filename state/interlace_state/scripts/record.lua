-- Add events that are not the last, if the job is still the caller's.
-- KEYS  job:{id}  events:{id}
-- ARGV  fence, this call's token, then for each event: the state that it leads to or "", the event
-- Returns 1 if the job is the caller's, 0 if it has ended, is another's or is gone.
local job = redis.call("HMGET", KEYS[1], "state", "fence", "recorded")
if job[2] ~= ARGV[1] or job[1] == "completed" or job[1] == "error" or job[1] == "cancelled" then return 0 end
-- The connection repeats a call whose answer it lost: the events are in already.
if job[3] == ARGV[2] then return 1 end
redis.call("HSET", KEYS[1], "recorded", ARGV[2])
for i = 3, #ARGV, 2 do
  redis.call("XADD", KEYS[2], "*", "e", ARGV[i + 1])
  if ARGV[i] ~= "" then redis.call("HSET", KEYS[1], "state", ARGV[i], "last", ARGV[i + 1]) end
end
return 1
