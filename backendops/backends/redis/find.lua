-- One stretch of the sweep: result keys that have no time to live.
-- ARGV: cursor, pattern, count, prefix of task keys, most bytes of a value to return whole, bytes of head, bytes of tail.
-- Returns {cursor, {key, type, length, value or its two ends}...}. It writes nothing. Group and chord keys
-- are not read: reading would make them look used, and how long they were idle is all that tells their age.
local answer = redis.call('SCAN', ARGV[1], 'MATCH', ARGV[2], 'COUNT', ARGV[3])
local whole, head, tail = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local found = {answer[1]}
for _, key in ipairs(answer[2]) do
    if redis.call('PTTL', key) == -1 then
        local kind = redis.call('TYPE', key)['ok']
        local length, value = 0, ''
        if kind == 'string' and string.sub(key, 1, #ARGV[4]) == ARGV[4] then
            length = redis.call('STRLEN', key)
            if length <= whole then
                value = redis.call('GET', key)
            else
                value = redis.call('GETRANGE', key, 0, head - 1) .. redis.call('GETRANGE', key, -tail, -1)
            end
        end
        found[#found + 1] = {key, kind, length, value}
    end
end
return found
