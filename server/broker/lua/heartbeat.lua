#!lua flags=allow-oom
-- Renew a worker's heartbeat. KEYS: workers, worker. ARGV: worker id, heartbeat, TTL.
-- Allowed when memory is full, or a full server would look like one without workers.
redis.call('SET', KEYS[2], ARGV[2], 'EX', ARGV[3])
redis.call('SADD', KEYS[1], ARGV[1])
