-- One call over the lists that RPC over Redis leaves behind: replies that nobody fetched, and answers to inspection.
-- ARGV: cursor, keys of a SCAN, most keys, seconds, 'write' or 'count', milliseconds a reply list may be idle, the same of
--   a pidbox list; empty: it is never touched.
-- Returns {cursor, examined, lists without an expiry, those of them that nobody can tell the idle time of, removed}. Under
-- an LFU policy that is every one, and nothing is removed.
local started, most, seconds, writes = clock(), tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5] == 'write'
local x = '%x%x%x%x'
local reply = '^' .. x .. x .. '%-' .. x .. '%-' .. x .. '%-' .. x .. '%-' .. x .. x .. x .. '$'
local limits = {tonumber(ARGV[6]), tonumber(ARGV[7])}
local found, untold, removed, cursor, examined, at = 0, 0, 0, ARGV[1], 0, started
repeat
    local before = at
    local answer = redis.call('SCAN', cursor, 'COUNT', ARGV[2], 'TYPE', 'list')
    cursor, examined = answer[1], examined + ARGV[2]
    for _, key in ipairs(answer[2]) do
        local which = string.find(key, reply) and 1 or string.find(key, '.reply.celery.pidbox', -20, true) and 2
        if which and redis.pcall('PTTL', key) == -1 then
            found = found + 1
            local idle = limits[which] and redis.pcall('OBJECT', 'IDLETIME', key)
            if limits[which] and type(idle) ~= 'number' then
                untold = untold + 1
            elseif idle and idle * 1000 >= limits[which] then
                removed = removed + 1
                if writes then
                    redis.call('UNLINK', key)
                end
            end
        end
    end
    at = clock()
until cursor == '0' or examined >= most or at <= before or at - started >= seconds
return {cursor, examined, found, untold, removed}
