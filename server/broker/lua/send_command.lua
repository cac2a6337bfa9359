-- Append a command to a live session.
-- KEYS: job, in. ARGV: command number, command, bytes, TTL, command limit, number of the connection
-- that sends it (0: any), position after it.
-- Returns 1; 0 when the job has ended or is unknown; -1 when too many commands are pending; -2 when
-- a command before this one was lost with a server; -3 when a later connection has the session.
-- Sending a number twice appends it once.
local status = redis.call('HGET', KEYS[1], 'status')
if status ~= 'queued' and status ~= 'running' then return 0 end
local latest = tonumber(redis.call('HGET', KEYS[1], 'connection') or 0)
if ARGV[6] ~= '0' and latest > tonumber(ARGV[6]) then return -3 end
local missing = tonumber(ARGV[1]) - tonumber(redis.call('HGET', KEYS[1], 'commands'))
if missing <= 0 then return 1 end
if missing > 1 then return -2 end
if redis.call('XLEN', KEYS[2]) >= tonumber(ARGV[5]) then return -1 end
redis.call('XADD', KEYS[2], '*', 'm', ARGV[2], 'b', ARGV[3])
redis.call('HSET', KEYS[1], 'commands', ARGV[1], 'position', ARGV[7])
redis.call('EXPIRE', KEYS[2], ARGV[4])
return 1
