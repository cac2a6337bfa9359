#!lua flags=allow-oom
-- Renew a reader's heartbeat. KEYS: reader. ARGV: TTL.
-- Allowed when memory is full, or the reader's sessions would be ended as abandoned.
redis.call('SET', KEYS[1], '', 'EX', ARGV[1])
