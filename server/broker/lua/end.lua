#!lua flags=allow-oom
-- End a job once and free its place in the queue.
-- KEYS: job, out, in, state, portrait, audio, reference. ARGV: token ('' for any), group, status,
-- last event, TTL, then field and value pairs for the job.
-- Returns 0 when the job had ended before or another worker has claimed it, else 1.
-- Allowed when memory is full, for it frees memory.
local entry = redis.call('HGET', KEYS[1], 'entry')
if not entry then return 0 end
if ARGV[1] ~= '' and redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return 0 end
local queue, before = redis.call('HGET', KEYS[1], 'queue'), redis.call('HGET', KEYS[1], 'status')
redis.call('XACK', queue, ARGV[2], entry)
redis.call('XDEL', queue, entry)
redis.call('DEL', KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7])
if before ~= 'queued' and before ~= 'running' then return 0 end
redis.call('HSET', KEYS[1], 'status', ARGV[3])
for i = 6, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('XADD', KEYS[2], 'NOMKSTREAM', '*', 'm', ARGV[4], 'b', '')
redis.call('EXPIRE', KEYS[1], ARGV[5])
redis.call('EXPIRE', KEYS[2], ARGV[5])
return 1
