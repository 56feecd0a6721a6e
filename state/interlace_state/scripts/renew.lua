-- A worker's sign of life for the job that it holds. Never takes a job from another.
-- ARGV  prefix, job id, fence, length of a lease in ms, lifetime in seconds
-- Returns 1 if the lease is renewed, 0 if it is no longer this worker's.
local id = ARGV[2]
local job = redis.call("HMGET", key("job", id), "fence", "slug", "tenant")
if job[1] ~= ARGV[3] then return 0 end
if redis.call("ZADD", key("leases", job[2]), "XX", "CH", now() + tonumber(ARGV[4]), id) == 0 then
  if not redis.call("ZSCORE", key("leases", job[2]), id) then return 0 end
end
charge(id, job[2], job[3])
keep(id, job[2], job[3], ARGV[5])
return 1
