-- Give a leased job back: it waits again, before those that nobody has had, and the attempt does not count.
-- ARGV  prefix, job id, fence, event, lifetime in seconds
-- Returns 1 if the job waits again, 0 if it has ended, is another's or is gone.
local id = ARGV[2]
local job = redis.call("HMGET", key("job", id), "state", "fence", "slug", "tenant")
if job[2] ~= ARGV[3] or has_ended(job[1]) then return 0 end
charge(id, job[3], job[4])
redis.call("HINCRBY", key("job", id), "fence", 1)
redis.call("HINCRBY", key("job", id), "attempts", -1)
redis.call("HSET", key("job", id), "state", "queued", "last", ARGV[4])
redis.call("HDEL", key("job", id), "charged_ms", "party")
tell(id, job[4], ARGV[4])
redis.call("ZADD", key("leases", job[3]), 0, id)  -- lapsed: the next worker that asks gets it
redis.call("SREM", key("running", job[4]), id)
wake(job[3])
keep(id, job[3], job[4], ARGV[5])
return 1
