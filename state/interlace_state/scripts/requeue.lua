-- Give a leased job back to the end of its queue.
-- KEYS  job:{id}  events:{id}  queue:{slug}
-- ARGV  queue entry, event, job id
-- Returns 1 if the job waits again, 0 if this entry was no longer queued.
redis.call("XACK", KEYS[3], "workers", ARGV[1])
if redis.call("XDEL", KEYS[3], ARGV[1]) == 0 then return 0 end
redis.call("HSET", KEYS[1], "state", "queued", "last", ARGV[2])
redis.call("XADD", KEYS[2], "*", "e", ARGV[2])
redis.call("XADD", KEYS[3], "*", "job", ARGV[3])
return 1
