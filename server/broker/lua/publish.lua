-- Publish an event and the snapshot after it, then drop the commands that the snapshot includes.
-- KEYS: job, out, in, state. ARGV: token, event number, event, bytes, TTL, snapshot, id of the
-- first command that the snapshot does not include, then field and value pairs for the job.
-- Returns 0 when the job has ended or another worker has claimed it, -1 when an event before this
-- one was lost with a server, else 1.
if redis.call('HGET', KEYS[1], 'status') ~= 'running' then return 0 end
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return 0 end
local missing = tonumber(ARGV[2]) - tonumber(redis.call('HGET', KEYS[1], 'events'))
if missing <= 0 then return 1 end
if missing > 1 then return -1 end
redis.call('XADD', KEYS[2], 'NOMKSTREAM', '*', 'm', ARGV[3], 'b', ARGV[4])
redis.call('SET', KEYS[4], ARGV[6], 'EX', ARGV[5])
redis.call('XTRIM', KEYS[3], 'MINID', ARGV[7])
redis.call('HSET', KEYS[1], 'events', ARGV[2], 'attempts', 0, 'lease_timeouts', 0)
for i = 8, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, ARGV[5]) end
return 1
