-- A model and how it is doing, in one way there and back.
-- ARGV  prefix, slug
-- Returns {card or nil, {replica, its sign of life, ...}, wanted or nil, moment or nil, 1 if paused, {drained replica, ...}}
local prefix, slug = ARGV[1], ARGV[2]
local replicas, signs = prefix .. "replicas:" .. slug, {}
for _, id in ipairs(redis.call("SMEMBERS", replicas)) do
  local sign = redis.call("GET", prefix .. "replica:" .. slug .. ":" .. id)
  if sign then
    table.insert(signs, id)
    table.insert(signs, sign)
  else
    redis.call("SREM", replicas, id)  -- it has been silent for too long
  end
end
return {
  redis.call("HGET", prefix .. "models", slug),
  signs,
  redis.call("GET", prefix .. "wanted:" .. slug),
  redis.call("HGET", prefix .. "moments", slug),
  redis.call("SISMEMBER", prefix .. "paused", slug),
  redis.call("SMEMBERS", prefix .. "drained"),
}
