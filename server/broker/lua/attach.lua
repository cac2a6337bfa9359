#!lua flags=allow-oom
-- Attach a connection to a live session, in place of the one before.
-- KEYS: job, out, reader. ARGV: TTL of the reader.
-- Returns the connection's number, how many commands there were, the position after the last one,
-- how many fragments, and how many bytes of sound they consumed; nothing for a session that is gone.
-- Allowed when memory is full, like reader_heartbeat.lua.
if redis.call('EXISTS', KEYS[1], KEYS[2]) < 2 then return false end
local number = redis.call('HINCRBY', KEYS[1], 'connection', 1)
redis.call('SET', KEYS[3], '', 'EX', ARGV[1])
local job = redis.call('HMGET', KEYS[1], 'commands', 'position', 'fragments', 'consumed')
return {number, job[1], job[2], job[3], job[4]}
