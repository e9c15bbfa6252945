"""The Lua scripts: every step in Redis that must be all or nothing."""

from __future__ import annotations

from typing import Final

# Redis that is full (`noeviction`) refuses what would grow it: appends, deliveries, topics. What frees
# memory, or says how far somebody got, still has to run, or nothing would ever be freed.
_ALSO_WHEN_FULL: Final = "#!lua flags=allow-oom\n"

_NEWER: Final = """
-- Compares ids `<lsn>-<ordinal>` without going through doubles.
local function newer(a, b)
  local al, ao = string.match(a, '(%d+)-(%d+)')
  local bl, bo = string.match(b, '(%d+)-(%d+)')
  if al ~= bl then
    if #al ~= #bl then return #al > #bl end
    return al > bl
  end
  if #ao ~= #bo then return #ao > #bo end
  return ao > bo
end
"""

# What one process writes down and another compares is Redis's time: their own clocks may differ, or jump.
_NOW_MS: Final = """
local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end
"""

NOW: Final = (
    _NOW_MS
    + """
-- KEYS any
-- The time of the server that has the key, in milliseconds since 1970.
return now_ms()
"""
)

APPEND: Final = (
    _NOW_MS
    + """
-- KEYS feed tail marks   ARGV expected id payload events tags channel mark_ms mark_bytes relay
-- Appends only behind the entry that the relay expects, and only while the feed is claimed by that relay.
-- Returns the id that the feed ends with, or nothing if another relay has claimed it.
local tail = redis.call('HMGET', KEYS[2], 'id', 'n', 'b', 'mt', 'mb', 'by')
if (tail[6] or '') ~= ARGV[9] then return false end
local last = tail[1] or '0-0'
if last ~= ARGV[1] then return last end
local n = (tonumber(tail[2]) or 0) + tonumber(ARGV[4])
local b = (tonumber(tail[3]) or 0) + #ARGV[3]
local now = now_ms()
local t = string.format('%.0f', now)
redis.call('XADD', KEYS[1], ARGV[2], 'd', ARGV[3], 'n', n, 't', t, 'g', ARGV[5])
local mt, mb = tonumber(tail[4]) or 0, tonumber(tail[5]) or 0
-- Either way: a clock that was set back may not stop the marks, by which alone a feed is trimmed.
if math.abs(now - mt) >= tonumber(ARGV[7]) or b - mb >= tonumber(ARGV[8]) then
  redis.call('RPUSH', KEYS[3], ARGV[2] .. ' ' .. t .. ' ' .. string.format('%.0f', b))
  mt, mb = t, b
end
redis.call('HSET', KEYS[2], 'id', ARGV[2], 'n', string.format('%.0f', n), 'b', string.format('%.0f', b),
           'mt', mt, 'mb', string.format('%.0f', mb))
redis.call('PUBLISH', ARGV[6], ARGV[2])
return ARGV[2]
"""
)

CLAIM: Final = (
    _ALSO_WHEN_FULL
    + """
-- KEYS tail   ARGV relay
-- From now on only this relay appends to the feed. Returns the id that the feed ends with.
redis.call('HSET', KEYS[1], 'by', ARGV[1])
return redis.call('HGET', KEYS[1], 'id') or '0-0'
"""
)

TAKE_LEASE: Final = (
    _ALSO_WHEN_FULL
    + _NOW_MS
    + """
-- KEYS feeder   ARGV server relay lease_ms founds next saved older...
-- The database is fed by this server from now on, through this relay. 1 taken, 0 another server feeds it,
-- 2 nobody is known to (taken, if `founds` is 1),
-- -1 nobody does now, but who did last had another database than this one, if of the same id.
local last = redis.call('HMGET', KEYS[1], 'server', 'until', 'saved', 'next')
if not last[1] then
  if ARGV[4] ~= '1' then return 2 end
elseif last[1] ~= ARGV[1] then
  if tonumber(last[2]) > now_ms() then return 0 end
  local same = false
  for i = 6, #ARGV do same = same or ARGV[i] == last[3] or ARGV[i] == last[4] end
  if not same then return -1 end
end
redis.call('HSET', KEYS[1], 'server', ARGV[1], 'relay', ARGV[2], 'next', ARGV[5], 'saved', ARGV[6],
           'until', string.format('%.0f', now_ms() + tonumber(ARGV[3])))
return 1
"""
)

RENEW_LEASE: Final = (
    _ALSO_WHEN_FULL
    + _NOW_MS
    + """
-- KEYS feeder   ARGV relay lease_ms (field value)...
-- 0 if another relay has the lease. One that has expired and was not taken is still ours.
if redis.call('HGET', KEYS[1], 'relay') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'until', string.format('%.0f', now_ms() + tonumber(ARGV[2])), unpack(ARGV, 3))
return 1
"""
)

HEAD: Final = (
    _ALSO_WHEN_FULL
    + """
-- KEYS feeder head   ARGV relay head
-- 0 if another relay has the lease.
if (redis.call('HGET', KEYS[1], 'relay') or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[2], ARGV[2])
return 1
"""
)

TRIM: Final = (
    _ALSO_WHEN_FULL
    + _NOW_MS
    + _NEWER
    + """
-- KEYS feed tail marks floor done   ARGV keep_ms budget_bytes
-- Trims what is too old or beyond the byte budget, never what has not been routed, never the last entry.
-- Returns how many entries went, and about how many bytes wait to be routed (0 below half of the budget).
local tail = redis.call('HMGET', KEYS[2], 'id', 'b')
if not tail[1] then return {0, 0} end
local bytes, budget, oldest = tonumber(tail[2]), tonumber(ARGV[2]), now_ms() - tonumber(ARGV[1])
local done = redis.call('GET', KEYS[5]) or '0-0'
local cut, left = nil, 0
while true do
  local mark = redis.call('LINDEX', KEYS[3], 0)
  if not mark then break end
  local id, t, b = string.match(mark, '(%S+) (%S+) (%S+)')
  left = bytes - tonumber(b)
  if not (tonumber(t) < oldest or left > budget) or newer(id, done) or id == tail[1] then break end
  redis.call('LPOP', KEYS[3])
  cut = id
end
local waiting = 0
if left > budget / 2 then
  for _, mark in ipairs(redis.call('LRANGE', KEYS[3], 0, -1)) do
    local id, _, b = string.match(mark, '(%S+) (%S+) (%S+)')
    if newer(id, done) then
      waiting = bytes - tonumber(b)
      break
    end
  end
end
if not cut then return {0, waiting} end
redis.call('SET', KEYS[4], cut)
local lsn, ordinal = string.match(cut, '(%d+)-(%d+)')
local first = lsn .. '-' .. string.format('%.0f', tonumber(ordinal) + 1)
return {redis.call('XTRIM', KEYS[1], 'MINID', '=', first), waiting}
"""
)

DELIVER: Final = (
    _NEWER
    + """
-- KEYS stream sent token   ARGV payload budget_bytes ttl_ms (shard id)...
-- One step of a router for one gateway: what it means for each shard, chained per shard by the previous id.
-- 1 appended, 0 it was there already, -1 the gateway is not registered,
-- -2 over budget: the gateway will see a gap.
if redis.call('EXISTS', KEYS[3]) == 0 then return -1 end
local places, fresh = {}, false
for i = 4, #ARGV, 2 do
  local prev = redis.call('HGET', KEYS[2], ARGV[i]) or '0-0'
  places[#places + 1] = ARGV[i] .. ':' .. ARGV[i + 1] .. ':' .. prev
  if newer(ARGV[i + 1], prev) then
    fresh = true
    redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1])
  end
end
if not fresh then return 0 end
if redis.call('HINCRBY', KEYS[2], 'bytes', #ARGV[1]) > tonumber(ARGV[2]) then
  redis.call('HINCRBY', KEYS[2], 'bytes', -#ARGV[1])
  return -2
end
redis.call('XADD', KEYS[1], '*', 'p', table.concat(places, ' '), 'd', ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return 1
"""
)

CONSUMED: Final = (
    _ALSO_WHEN_FULL
    + """
-- KEYS stream sent   ARGV next_id bytes
-- The gateway has taken everything below next_id, bytes of it.
redis.call('HINCRBY', KEYS[2], 'bytes', -tonumber(ARGV[2]))
return redis.call('XTRIM', KEYS[1], 'MINID', '=', ARGV[1])
"""
)

JOIN: Final = (
    _ALSO_WHEN_FULL
    + _NOW_MS
    + """
-- KEYS routers   ARGV token lease_ms
-- A router says that it is at work. Returns how many are, without those not heard of for a lease.
local now = now_ms()
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], 0, now - tonumber(ARGV[2]))
return redis.call('ZCARD', KEYS[1])
"""
)

LEASE: Final = (
    _ALSO_WHEN_FULL
    + """
-- KEYS lock...   ARGV token ttl_ms wanted
-- Takes up to `wanted` free locks. Returns their indexes, from 1.
local taken = {}
for i, key in ipairs(KEYS) do
  if #taken >= tonumber(ARGV[3]) then break end
  if redis.call('SET', key, ARGV[1], 'NX', 'PX', ARGV[2]) then taken[#taken + 1] = i end
end
return taken
"""
)

RENEW: Final = """
-- KEYS lock...   ARGV token ttl_ms
-- Returns the indexes, from 1, of the locks that are lost.
local lost = {}
for i, key in ipairs(KEYS) do
  if redis.call('GET', key) == ARGV[1] then redis.call('PEXPIRE', key, ARGV[2]) else lost[#lost + 1] = i end
end
return lost
"""

RELEASE: Final = """
-- KEYS lock...   ARGV token
for _, key in ipairs(KEYS) do
  if redis.call('GET', key) == ARGV[1] then redis.call('DEL', key) end
end
return #KEYS
"""

ROUTED: Final = (
    _ALSO_WHEN_FULL
    + """
-- KEYS lock done audit audit_size   ARGV token ttl_ms expected id audited budget_bytes
-- Moves `done` if the lease and the position are still ours; renews the lease. 1 moved, 0 not ours any more.
-- What was routed is left for the audit in the same step. Nothing that is wrong there may hold up routing: an
-- entry that does not fit or is refused is missing, and the next one's `p` shows it.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if (redis.call('GET', KEYS[2]) or '0-0') ~= ARGV[3] then return 0 end
redis.call('SET', KEYS[2], ARGV[4])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
if ARGV[5] ~= '' and (tonumber(redis.call('GET', KEYS[4])) or 0) + #ARGV[5] <= tonumber(ARGV[6]) then
  local added = redis.pcall('XADD', KEYS[3], ARGV[4], 'p', ARGV[3], 'd', ARGV[5])
  if type(added) == 'string' then redis.call('INCRBY', KEYS[4], #ARGV[5]) end
end
return 1
"""
)

AUDITED: Final = (
    _ALSO_WHEN_FULL
    + """
-- KEYS audit audit_size   ARGV id bytes
-- Everything up to id is in the audit log, bytes of it.
local lsn, ordinal = string.match(ARGV[1], '(%d+)-(%d+)')
redis.call('XTRIM', KEYS[1], 'MINID', '=', lsn .. '-' .. string.format('%.0f', tonumber(ordinal) + 1))
if redis.call('XLEN', KEYS[1]) == 0 then
  redis.call('DEL', KEYS[2])
else
  redis.call('DECRBY', KEYS[2], ARGV[2])
end
return 1
"""
)

HOST: Final = """
-- KEYS topics topic hosted registry   ARGV topic_id definition gateway connections tenant_tag log_length
-- Says that the gateway hosts the topic. Returns the registry's version that includes it.
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('HSET', KEYS[2], ARGV[3], ARGV[4])
redis.call('SADD', KEYS[3], ARGV[5] .. ' ' .. ARGV[1])
return redis.call('XADD', KEYS[4], 'MAXLEN', '~', ARGV[6], '*',
                  'o', '+', 'i', ARGV[1], 'd', ARGV[2], 'w', ARGV[3], 't', ARGV[5])
"""

UNHOST: Final = (
    _ALSO_WHEN_FULL
    + """
-- KEYS topics topic hosted registry   ARGV topic_id gateway tenant_tag log_length
redis.call('HDEL', KEYS[2], ARGV[2])
if redis.call('HLEN', KEYS[2]) == 0 then redis.call('HDEL', KEYS[1], ARGV[1]) end
redis.call('SREM', KEYS[3], ARGV[3] .. ' ' .. ARGV[1])
return redis.call('XADD', KEYS[4], 'MAXLEN', '~', ARGV[4], '*',
                  'o', '-', 'i', ARGV[1], 'd', '', 'w', ARGV[2], 't', ARGV[3])
"""
)

REGISTER: Final = (
    _ALSO_WHEN_FULL
    + """
-- KEYS token   ARGV token ttl_ms
-- Takes a gateway's id from whoever has it. 0 while its dead predecessor is being reaped.
local holder = redis.call('GET', KEYS[1])
if holder and string.sub(holder, 1, 7) == 'reaper:' then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
)

DISCONNECT: Final = (
    _ALSO_WHEN_FULL
    + """
-- KEYS clients connected   ARGV client gateway member
-- A client is gone from a gateway; its entry stays if another gateway has written it meanwhile.
local entry = redis.call('HGET', KEYS[1], ARGV[1])
if entry and cjson.decode(entry).gateway == ARGV[2] then redis.call('HDEL', KEYS[1], ARGV[1]) end
return redis.call('SREM', KEYS[2], ARGV[3])
"""
)

BEAT: Final = (
    _ALSO_WHEN_FULL
    + _NOW_MS
    + """
-- KEYS token gateways   ARGV gateway token ttl_ms
-- A gateway's heartbeat, fenced: 0 if the gateway was reaped or replaced meanwhile.
if redis.call('GET', KEYS[1]) ~= ARGV[2] then return 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('ZADD', KEYS[2], now_ms(), ARGV[1])
return 1
"""
)
