#!lua flags=allow-oom
-- Renew a connection's hold on a live session.
-- KEYS: job, reader. ARGV: the connection's number, TTL of the reader.
-- Returns 0 when a later connection has the session, else 1. A number that was lost with a server
-- is restored.
-- Allowed when memory is full, like reader_heartbeat.lua.
if redis.call('EXISTS', KEYS[1]) == 0 then return 1 end
local latest = tonumber(redis.call('HGET', KEYS[1], 'connection') or 0)
if latest > tonumber(ARGV[1]) then return 0 end
redis.call('HSET', KEYS[1], 'connection', ARGV[1])
redis.call('SET', KEYS[2], '', 'EX', ARGV[2])
return 1
