-- Every key below a prefix as it is at one moment: (name, milliseconds that it still lives or -1, what RESTORE takes).
-- ARGV: the prefix, and a pattern that matches what begins with it.
local found = {}
for _, key in ipairs(redis.call('KEYS', ARGV[2])) do
  table.insert(found, string.sub(key, #ARGV[1] + 1))
  table.insert(found, redis.call('PTTL', key))
  table.insert(found, redis.call('DUMP', key))
end
return found
