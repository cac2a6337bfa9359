#!lua flags=allow-oom
-- Take one of a client's places for live sessions, or renew the lease of one already held.
-- KEYS: places. ARGV: holder, number of places, lease in seconds.
-- Returns 1, or 0 when every place is taken.
-- Allowed when memory is full, like take_token.lua.
local now = tonumber(redis.call('TIME')[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
local held = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not held and redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2]) then return 0 end
redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[3])
return 1
