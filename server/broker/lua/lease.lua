#!lua flags=allow-oom
-- Renew or release the leases of this worker's jobs.
-- KEYS: queue and job, for each job. ARGV: group, worker id, idle time in ms (0 renews, more than
-- the lease releases), then entry and token for each job.
-- Returns for each job 1 if this worker still held it, else 0.
-- Releasing a job takes back its attempt: the worker did not fail at it.
-- Allowed when memory is full, like claim.lua.
local held = {}
for i = 1, #KEYS / 2 do
  local queue, job, entry, token = KEYS[2 * i - 1], KEYS[2 * i], ARGV[2 * i + 2], ARGV[2 * i + 3]
  held[i] = 0
  if redis.call('HGET', job, 'token') == token
      and redis.call('HGET', job, 'status') == 'running' then
    redis.call('XCLAIM', queue, ARGV[1], ARGV[2], 0, entry, 'IDLE', ARGV[3], 'JUSTID')
    local attempts = tonumber(redis.call('HGET', job, 'attempts'))
    if tonumber(ARGV[3]) > 0 and attempts > 0 then
      redis.call('HSET', job, 'attempts', attempts - 1)
    end
    held[i] = 1
  end
end
return held
