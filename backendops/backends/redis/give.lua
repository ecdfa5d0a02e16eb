-- Give each key its time to live, if it has none or a longer one and its value is still what was read.
-- KEYS: the keys. ARGV: bytes of a value compared whole, bytes of head, bytes of tail, then three for each key: how
-- ('dated' or 'whole'), milliseconds, and the sha1 of the value's ends or of all of it; the time to live it had is
-- told by a fourth, -1 for none: one that was written meanwhile keeps its own.
-- Returns 1 or 0 for each key.
local whole, head, tail = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local given = {}
for i, key in ipairs(KEYS) do
    local how, ms, same, had = ARGV[4 * i], tonumber(ARGV[4 * i + 1]), ARGV[4 * i + 2], tonumber(ARGV[4 * i + 3])
    given[i] = 0
    local ttl = redis.call('PTTL', key)
    if (ttl == -1) == (had == -1) and (ttl == -1 or ttl > ms) and redis.call('TYPE', key).ok == 'string' then
        local value
        if how == 'whole' or redis.call('STRLEN', key) <= whole then
            value = redis.call('GET', key)
        else
            value = redis.call('GETRANGE', key, 0, head - 1) .. redis.call('GETRANGE', key, -tail, -1)
        end
        if redis.sha1hex(value) == same then
            given[i] = redis.call('PEXPIRE', key, string.format('%.0f', ms))
        end
    end
end
return given
