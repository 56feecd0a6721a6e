-- Who asks: the key of a secret, what its tenant's limits are changed to, how often it has asked in this minute.
-- ARGV  prefix, SHA-256 of the secret, who needs no key while none was ever minted or "", Unix time in seconds,
--       the minute, 1 to count the request, else 0
-- Returns {key as JSON or "" for whoever needs none, changes as JSON or "", requests}; nil for whoever may not enter.
local prefix, digest, tenant = ARGV[1], ARGV[2], ARGV[3]
local data = ""
if tenant == "" or redis.call("HLEN", prefix .. "api_keys") > 0 then
  data = redis.call("HGET", prefix .. "api_keys", digest)
  if not data then return false end
  local key = cjson.decode(data)
  if type(key.expires) == "number" and key.expires <= tonumber(ARGV[4]) then return false end
  tenant = key.tenant
end
local requests = 0
if ARGV[6] == "1" then
  local window = prefix .. "rate:" .. tenant .. ":" .. ARGV[5]
  requests = redis.call("INCR", window)
  redis.call("EXPIRE", window, 120)
end
return {data, redis.call("HGET", prefix .. "limits", tenant) or "", requests}
