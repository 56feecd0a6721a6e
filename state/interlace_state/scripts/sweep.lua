-- Take jobs out of a model's queue whose lifetime was over before their end: those that a worker has had are not given
-- out again, and nobody else would meet them.
-- ARGV  prefix, slug, moment in ms: those that came before it
-- Returns how many.
local slug, swept = ARGV[2], 0
for _, tenant in ipairs(redis.call("SMEMBERS", key("tenants", slug))) do
  for _, entry in ipairs(redis.call("XRANGE", key("queue", slug, tenant), "-", ARGV[3])) do
    local id = entry[2][2]
    if redis.call("EXISTS", key("job", id)) == 0 then
      dequeue(entry[1], slug, tenant)
      redis.call("ZREM", key("live", slug, tenant), id)
      redis.call("SREM", key("running", tenant), id)
      redis.call("ZREM", key("leases", slug), id)
      swept = swept + 1
    end
  end
end
return swept
