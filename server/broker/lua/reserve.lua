#!lua flags=allow-oom
-- Reserve a place and bytes for a job, or change the bytes of a job that has a place. Avatars have
-- a hash of their own, of kind "kept" like finished videos.
-- KEYS: reserved (job id -> "kind redis_bytes folder_bytes client"), expiries (sorted by time).
-- ARGV: job id, TTL, kind, client, share, then wanted amount and limit of: places, bytes of Redis,
-- bytes of the folder. An empty kind changes an existing reservation, if there is one.
-- A client may hold at most its share of what all others leave, but always one place.
-- Returns {0}; or what is missing (1 place, 2 Redis, 3 folder), how much the client may still take
-- of it, and what the client keeps that takes some of it and expires first, or ''.
-- Allowed when memory is full: it writes little, and a full server must still answer "busy".
local time = redis.call('TIME')
local now = time[1] + time[2] / 1e6
for _, expired in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now)) do
  redis.call('HDEL', KEYS[1], expired)
end
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)

local function parse(entry)
  local kind, in_redis, in_folder, client = string.match(entry, '^(%S+) (%d+) (%d+) (.*)$')
  return kind, client, {1, tonumber(in_redis), tonumber(in_folder)}
end

local id, kind, client, share = ARGV[1], ARGV[3], ARGV[4], tonumber(ARGV[5])
local held = {0, 0, 0}
local existing = redis.call('HGET', KEYS[1], id)
if existing then
  local its_kind, its_client, amounts = parse(existing)
  if kind == '' then kind, client = its_kind, its_client end
  held = amounts
elseif kind == '' then
  return {0}
end

local own, others = {0, 0, 0}, {0, 0, 0}
local kept = {{}, {}, {}}
local entries = redis.call('HGETALL', KEYS[1])
for i = 1, #entries, 2 do
  if entries[i] ~= id then
    local its_kind, its_client, amounts = parse(entries[i + 1])
    local sum = its_client == client and own or others
    if its_kind == kind then sum[1] = sum[1] + 1 end
    for what = 2, 3 do
      sum[what] = sum[what] + amounts[what]
      if its_kind == 'kept' and its_client == client and amounts[what] > 0 then
        table.insert(kept[what], entries[i])
      end
    end
  end
end

for what = 1, 3 do
  local wanted, limit = tonumber(ARGV[4 + 2 * what]), tonumber(ARGV[5 + 2 * what])
  local left = limit - others[what]
  local allowed = math.floor(share * left)
  if what == 1 then allowed = math.max(allowed, math.min(left, 1)) end
  if wanted > held[what] and own[what] + wanted > allowed then
    local first, at = '', math.huge
    for _, one in ipairs(kept[what]) do
      local expiry = tonumber(redis.call('ZSCORE', KEYS[2], one))
      if expiry < at then first, at = one, expiry end
    end
    return {what, math.max(0, allowed - own[what]), first}
  end
end
redis.call('HSET', KEYS[1], id, table.concat({kind, ARGV[8], ARGV[10], client}, ' '))
redis.call('ZADD', KEYS[2], now + ARGV[2], id)
return {0}
