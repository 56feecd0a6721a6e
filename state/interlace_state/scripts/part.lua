-- Give a leased job back that cannot share a forward: it waits to run alone, before those of its tenant that nobody has
-- had, and the attempt does not count.
-- ARGV  prefix, job id, fence, event, lifetime in seconds
-- Returns 1 if the job waits again, 0 if it has ended, is another's or is gone.
local id, name = ARGV[2], key("job", ARGV[2])
local job = redis.call("HMGET", name, "state", "fence", "slug", "tenant")
local slug, tenant = job[3], job[4]
if job[2] ~= ARGV[3] or has_ended(job[1]) then return 0 end
charge(id, slug, tenant)
redis.call("HINCRBY", name, "fence", 1)
redis.call("HINCRBY", name, "attempts", -1)
redis.call("HSET", name, "state", "queued", "last", ARGV[4], "kin", "")
redis.call("HDEL", name, "charged_ms", "party")
tell(id, tenant, ARGV[4])
redis.call("ZREM", key("leases", slug), id)
redis.call("SREM", key("running", tenant), id)
redis.call("RPUSH", key("apart", slug, tenant), id)
redis.call("EXPIRE", key("apart", slug, tenant), ARGV[5])
await_turn(slug, tenant)
wake(slug)
keep(id, slug, tenant, ARGV[5])
return 1
