#!lua flags=allow-oom
-- Take one of a client's places for live sessions, or renew the lease of one already held.
-- KEYS: places, queue of live sessions. ARGV: holder, lease in seconds, maximum for each client
-- (0: none), share, all places for live sessions.
-- A client may hold at most its share of the places that all others leave, but always one.
-- Returns 1; 0 when the client has its maximum, -1 when it has its share.
-- Allowed when memory is full, like take_token.lua.
local now = tonumber(redis.call('TIME')[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then
  local own, most = redis.call('ZCARD', KEYS[1]), tonumber(ARGV[3])
  if most > 0 and own >= most then return 0 end
  local others = math.max(0, redis.call('XLEN', KEYS[2]) - own)
  local allowed = math.floor(tonumber(ARGV[4]) * (tonumber(ARGV[5]) - others))
  if own >= math.max(1, allowed) then return -1 end
end
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[2])
return 1
