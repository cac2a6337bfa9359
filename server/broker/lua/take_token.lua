#!lua flags=allow-oom
-- Take a token from a client's bucket, which holds one minute's tokens and refills evenly.
-- KEYS: bucket. ARGV: tokens a minute.
-- Returns the seconds until the next token as text; '0' when a token was taken.
-- Allowed when memory is full: it writes little, and a full server must still answer "busy".
local time = redis.call('TIME')
local now, size = time[1] + time[2] / 1e6, tonumber(ARGV[1])
local kept = redis.call('HMGET', KEYS[1], 'tokens', 'at')
local tokens, at = tonumber(kept[1] or size), tonumber(kept[2] or now)
tokens = math.min(size, tokens + (now - at) * size / 60)
local wait = 0
if tokens >= 1 then tokens = tokens - 1 else wait = (1 - tokens) * 60 / size end
redis.call('HSET', KEYS[1], 'tokens', tostring(tokens), 'at', tostring(now))
redis.call('EXPIRE', KEYS[1], 61)
return tostring(wait)
