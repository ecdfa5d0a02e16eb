-- One call over the lists that RPC over Redis leaves behind: replies that nobody fetched, and answers to inspection.
-- ARGV: cursor, keys of a SCAN, most keys, seconds, 'write' or 'count', milliseconds a reply list may be idle, the same of a
-- pidbox list; empty: it is never touched.
-- Returns {cursor, examined, reply lists, pidbox lists, removed}. A list in use has no idle time to speak of; under an
-- LFU policy there is none at all, and nothing is removed.
local started, most, seconds, writes = clock(), tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5] == 'write'
local x = '%x%x%x%x'
local reply = '^' .. x .. x .. '%-' .. x .. '%-' .. x .. '%-' .. x .. '%-' .. x .. x .. x .. '$'
local limits = {tonumber(ARGV[6]), tonumber(ARGV[7])}
local found, removed, cursor, examined = {0, 0}, 0, ARGV[1], 0
repeat
    local answer = redis.call('SCAN', cursor, 'COUNT', ARGV[2], 'TYPE', 'list')
    cursor, examined = answer[1], examined + ARGV[2]
    for _, key in ipairs(answer[2]) do
        local which = string.find(key, reply) and 1 or string.find(key, '.reply.celery.pidbox', -20, true) and 2
        if which then
            found[which] = found[which] + 1
            local idle = limits[which] and redis.pcall('OBJECT', 'IDLETIME', key)
            if type(idle) == 'number' and idle * 1000 >= limits[which] and redis.call('PTTL', key) == -1 then
                removed = removed + 1
                if writes then
                    redis.call('UNLINK', key)
                end
            end
        end
    end
until cursor == '0' or examined >= most or clock() - started >= seconds
return {cursor, examined, found[1], found[2], removed}
