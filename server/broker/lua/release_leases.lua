-- Release every lease of a dead worker. KEYS: queues. ARGV: group, worker id, idle time in ms.
for _, queue in ipairs(KEYS) do
  if redis.call('EXISTS', queue) == 1 then
    for _, entry in ipairs(redis.call('XPENDING', queue, ARGV[1], '-', '+', 1000, ARGV[2])) do
      redis.call('XCLAIM', queue, ARGV[1], ARGV[2], 0, entry[1], 'IDLE', ARGV[3], 'JUSTID')
    end
  end
end
