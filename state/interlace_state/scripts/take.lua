-- Make a queue entry that a worker has drawn its own, or drop it if its job needs no worker.
-- KEYS  job:{id}  events:{id}  queue:{slug}
-- ARGV  queue entry, worker, this call's token, lifetime in seconds
-- Returns {record, attempts, fence}, or nil if the entry is another's by now, or its job has ended or is gone.
local held = redis.pcall("XPENDING", KEYS[3], "workers", ARGV[1], ARGV[1], 1)
if held.err or not held[1] or held[1][2] ~= ARGV[2] then return false end
local job = redis.call("HMGET", KEYS[1], "record", "state", "taken")
local record, state = job[1], job[2]
if not record or state == "completed" or state == "error" or state == "cancelled" then
  redis.call("XACK", KEYS[3], "workers", ARGV[1])
  redis.call("XDEL", KEYS[3], ARGV[1])
  return false
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
