-- Queue a job, unless the queue is full.
-- KEYS: queue, job, out. ARGV: job id, request, queued event, queue limit, TTL, format,
-- token of the folder that the job needs ('': none).
-- Returns 1, or 0 when the queue is full. Submitting a job twice queues it once.
if redis.call('EXISTS', KEYS[2]) == 1 then return 1 end
if redis.call('XLEN', KEYS[1]) >= tonumber(ARGV[4]) then return 0 end
local entry = redis.call('XADD', KEYS[1], '*', 'job', ARGV[1])
redis.call('HSET', KEYS[2], 'status', 'queued', 'request', ARGV[2], 'entry', entry,
  'queue', KEYS[1], 'token', 0, 'attempts', 0, 'lease_timeouts', 0, 'events', 0, 'commands', 0,
  'format', ARGV[6], 'folder', ARGV[7])
redis.call('XADD', KEYS[3], '*', 'm', ARGV[3], 'b', '')
redis.call('EXPIRE', KEYS[2], ARGV[5])
redis.call('EXPIRE', KEYS[3], ARGV[5])
return 1
