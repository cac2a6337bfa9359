-- Publish an event and the snapshot after it, then drop the commands that the snapshot includes.
-- KEYS: job, out, in, state, expiries. ARGV: job id, token, event number, event, bytes, TTL,
-- snapshot, id of the first command that the snapshot does not include, then field and value pairs
-- for the job.
-- Returns 0 when the job has ended or another worker has claimed it, -1 when an event before this
-- one was lost with a server, else 1.
if redis.call('HGET', KEYS[1], 'status') ~= 'running' then return 0 end
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[2] then return 0 end
local missing = tonumber(ARGV[3]) - tonumber(redis.call('HGET', KEYS[1], 'events'))
if missing <= 0 then return 1 end
if missing > 1 then return -1 end
redis.call('XADD', KEYS[2], 'NOMKSTREAM', '*', 'm', ARGV[4], 'b', ARGV[5])
redis.call('SET', KEYS[4], ARGV[7], 'EX', ARGV[6])
redis.call('XTRIM', KEYS[3], 'MINID', ARGV[8])
redis.call('HSET', KEYS[1], 'events', ARGV[3], 'attempts', 0, 'lease_timeouts', 0)
for i = 9, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
for i = 1, 4 do redis.call('EXPIRE', KEYS[i], ARGV[6]) end
redis.call('ZADD', KEYS[5], 'XX', redis.call('TIME')[1] + ARGV[6], ARGV[1])
return 1
