-- Give a tenant another weight. What it is ahead of the clock counts by the new one: a debt is seconds, not turns.
-- ARGV  prefix, tenant, weight, slugs of all models
local tenant, former = ARGV[2], weight_of(ARGV[2])
redis.call("HSET", key("weights"), tenant, ARGV[3])
for i = 4, #ARGV do
  local fair = key("fair", ARGV[i])
  local clock, mine = number(redis.call("HGET", fair, "clock")), number(redis.call("HGET", fair, "t:" .. tenant))
  if mine > clock then
    mine = clock + (mine - clock) * former / weight_of(tenant)
    redis.call("HSET", fair, "t:" .. tenant, exact(mine))
    redis.call("ZADD", key("turn", ARGV[i]), "XX", exact(mine), tenant)
  end
end
return 1
