#!lua flags=allow-oom
-- Claim a job that the consumer group has delivered to this worker.
-- KEYS: queue, job, in. ARGV: entry, group, first command, TTL, counter to increment
-- ('attempts' or 'lease_timeouts'), worker id, oldest and newest format that the worker reads,
-- idle time in ms of a released job, token of the folder that the worker shares ('': none).
-- Returns request, token, events, attempts, lease_timeouts, stored; nothing for a job that has ended; the
-- format of a job that the worker cannot read, or 0 for one that needs another folder; both are
-- released as they were.
-- A live session's commands may arrive before its first claim.
-- Allowed when memory is full: a queued job frees its memory only once a worker has claimed it.
local status = redis.call('HGET', KEYS[2], 'status')
if status ~= 'queued' and status ~= 'running' then
  redis.call('XACK', KEYS[1], ARGV[2], ARGV[1])
  redis.call('XDEL', KEYS[1], ARGV[1])
  redis.call('DEL', KEYS[3])
  return false
end
local format = tonumber(redis.call('HGET', KEYS[2], 'format') or 1)
local folder = redis.call('HGET', KEYS[2], 'folder') or ''
local readable = format >= tonumber(ARGV[7]) and format <= tonumber(ARGV[8])
if not readable or (folder ~= '' and folder ~= ARGV[10]) then
  redis.call('XCLAIM', KEYS[1], ARGV[2], ARGV[6], 0, ARGV[1], 'IDLE', ARGV[9], 'JUSTID')
  return readable and 0 or format
end
if status == 'queued' then redis.call('XADD', KEYS[3], '*', 'm', ARGV[3], 'b', '') end
redis.call('HSET', KEYS[2], 'status', 'running')
local token = redis.call('HINCRBY', KEYS[2], 'token', 1)
redis.call('HINCRBY', KEYS[2], ARGV[5], 1)
redis.call('EXPIRE', KEYS[3], ARGV[4])
local job = redis.call('HMGET', KEYS[2], 'request', 'events', 'attempts', 'lease_timeouts',
  'stored')
return {job[1], token, job[2], job[3], job[4], job[5]}
