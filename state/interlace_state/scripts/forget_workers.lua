-- Remove the names of workers that hold nothing and have not asked for a job for a while.
-- KEYS  queue:{slug}
-- ARGV  milliseconds of silence
-- Returns how many went. One that lives after all is known again when it next asks.
local workers = redis.pcall("XINFO", "CONSUMERS", KEYS[1], "workers")
if workers.err then return 0 end
local gone = 0
for _, fields in ipairs(workers) do
  local worker = {}
  for i = 1, #fields, 2 do worker[fields[i]] = fields[i + 1] end
  if worker.pending == 0 and worker.idle > tonumber(ARGV[1]) then
    redis.call("XGROUP", "DELCONSUMER", KEYS[1], "workers", worker.name)
    gone = gone + 1
  end
end
return gone
