-- Give each key its time to live, if it still has none and is still what it was when it was read.
-- KEYS: the keys. ARGV: bytes of a value compared whole, bytes of head, bytes of tail, shortest time to live in ms,
-- then three for each key: how ('dated', 'whole' or 'idle'), milliseconds, and what must be unchanged.
--   dated, whole: the time to live; sha1 of the value's ends, or of all of it.
--   idle: how long it is kept after its last use; its type. Idle time is read here, so that a chord that
--   wakes up between reading and writing is not cut short. An LFU policy has no idle time: the key is kept in full.
-- Returns 1 or 0 for each key.
local whole, head, tail, shortest = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local given = {}
for i, key in ipairs(KEYS) do
    local how, ms, same = ARGV[3 * i + 2], tonumber(ARGV[3 * i + 3]), ARGV[3 * i + 4]
    given[i] = 0
    if redis.call('PTTL', key) == -1 then
        local kind = redis.call('TYPE', key)['ok']
        if how == 'idle' then
            if kind == same then
                local idle = redis.pcall('OBJECT', 'IDLETIME', key)
                if type(idle) == 'number' then
                    ms = ms - idle * 1000
                end
                given[i] = redis.call('PEXPIRE', key, string.format('%.0f', math.max(ms, shortest)))
            end
        elseif kind == 'string' then
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
end
return given
