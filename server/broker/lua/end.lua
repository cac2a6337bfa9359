#!lua flags=allow-oom
-- End a job once and free its place in the queue.
-- KEYS: job, out, in, state, portrait, audio, reference, video, reserved, expiries. ARGV: job id,
-- token ('' for any), group, status, last event, TTL, bytes of a kept video in Redis and in the
-- folder, then field and value pairs for the job.
-- Returns 0 when the job had ended before or another worker has claimed it, else 1.
-- What is reserved for the job (reserve.lua) becomes that of its kept video, or is free again.
-- Allowed when memory is full, for it frees memory.
local entry = redis.call('HGET', KEYS[1], 'entry')
if not entry then return 0 end
if ARGV[2] ~= '' and redis.call('HGET', KEYS[1], 'token') ~= ARGV[2] then return 0 end
local queue, before = redis.call('HGET', KEYS[1], 'queue'), redis.call('HGET', KEYS[1], 'status')
redis.call('XACK', queue, ARGV[3], entry)
redis.call('XDEL', queue, entry)
for i = 3, 8 do redis.call('DEL', KEYS[i]) end
if before ~= 'queued' and before ~= 'running' then return 0 end
local reserved = redis.call('HGET', KEYS[9], ARGV[1])
if reserved and (ARGV[7] ~= '0' or ARGV[8] ~= '0') then
  local client = string.match(reserved, '^%S+ %d+ %d+ (.*)$')
  redis.call('HSET', KEYS[9], ARGV[1], table.concat({'kept', ARGV[7], ARGV[8], client}, ' '))
  local time = redis.call('TIME')
  redis.call('ZADD', KEYS[10], time[1] + time[2] / 1e6 + ARGV[6], ARGV[1])
else
  redis.call('HDEL', KEYS[9], ARGV[1])
  redis.call('ZREM', KEYS[10], ARGV[1])
end
redis.call('HSET', KEYS[1], 'status', ARGV[4])
for i = 9, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('XADD', KEYS[2], 'NOMKSTREAM', '*', 'm', ARGV[5], 'b', '')
redis.call('EXPIRE', KEYS[1], ARGV[6])
redis.call('EXPIRE', KEYS[2], ARGV[6])
return 1
