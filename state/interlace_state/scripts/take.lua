-- Make a queue entry that a worker has drawn its own, or drop it if its job needs no worker.
-- KEYS  job:{id}  events:{id}  queue:{slug}
-- ARGV  queue entry, worker, this call's token, lifetime in seconds
-- Returns {record, attempts, fence}, or nil if the entry is another's by now, its job has ended or is gone, or may not
-- run yet.
local held = redis.pcall("XPENDING", KEYS[3], "workers", ARGV[1], ARGV[1], 1)
if held.err or not held[1] or held[1][2] ~= ARGV[2] then return false end
local job = redis.call("HMGET", KEYS[1], "record", "state", "taken")
local record, state = job[1], job[2]
if not record or state == "completed" or state == "error" or state == "cancelled" then
  redis.call("XACK", KEYS[3], "workers", ARGV[1])
  redis.call("XDEL", KEYS[3], ARGV[1])
  return false
end
local mine = redis.call("HMGET", KEYS[1], "running", "most_running", "id")
if mine[1] then
  local full = redis.call("SISMEMBER", mine[1], mine[3]) == 0 and redis.call("SCARD", mine[1]) >= tonumber(mine[2])
  if full then
    -- A job whose lifetime was over before its end is counted no more.
    local jobs = string.sub(KEYS[1], 1, -#mine[3] - 1)
    for _, id in ipairs(redis.call("SMEMBERS", mine[1])) do
      if redis.call("EXISTS", jobs .. id) == 0 then redis.call("SREM", mine[1], id) end
    end
    full = redis.call("SCARD", mine[1]) >= tonumber(mine[2])
  end
  if full then
    -- Its tenant has its share running: to the end of the queue.
    redis.call("XACK", KEYS[3], "workers", ARGV[1])
    redis.call("XDEL", KEYS[3], ARGV[1])
    redis.call("HSET", KEYS[1], "entry", redis.call("XADD", KEYS[3], "*", "job", mine[3]))
    return false
  end
  redis.call("SADD", mine[1], mine[3])
  redis.call("EXPIRE", mine[1], ARGV[4])
end
-- The connection repeats a call whose answer it lost: this attempt has been counted.
if job[3] ~= ARGV[3] then
  redis.call("HINCRBY", KEYS[1], "attempts", 1)
  redis.call("HINCRBY", KEYS[1], "fence", 1)
  redis.call("HSET", KEYS[1], "taken", ARGV[3])
end
redis.call("EXPIRE", KEYS[1], ARGV[4])
redis.call("EXPIRE", KEYS[2], ARGV[4])
local counts = redis.call("HMGET", KEYS[1], "attempts", "fence")
return {record, tonumber(counts[1]), tonumber(counts[2])}
