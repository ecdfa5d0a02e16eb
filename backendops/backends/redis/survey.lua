-- One call of the survey: as many stretches of the keyspace as fit into its time. It writes nothing.
-- ARGV: cursor, keys of the first SCAN and of the largest, most keys, seconds, task prefix, group prefix, 1 where keys
--   that are no results may be asked about, bytes of a value read whole, bytes of head, bytes of tail, elements of a set
--   that are weighed, then for each kind (task, group, chord, rpc, broker, foreign) how many keys are left until one is weighed, and every how many.
-- Returns {cursor, keys seen, keys of the next SCAN, 1 where others may still be asked about, {names of bindings}, for each kind, as one text: keys, without
--   a time to live, and up to 1 m, 1 h, 6 h, 1 d, 7 d, 30 d, 90 d, more, for each kind, as one text: keys left,
--   {kind, key, bytes, length, value or its two ends}...}.
local call, ask, sub, find, match = redis.call, redis.pcall, string.sub, string.find, string.match
local started, most, seconds = clock(), tonumber(ARGV[4]), tonumber(ARGV[5])
local task, group, may = ARGV[6], ARGV[7], ARGV[8] == '1'
local tasks, groups = #task, #group
local whole, head, tail, elements = tonumber(ARGV[9]), tonumber(ARGV[10]), tonumber(ARGV[11]), ARGV[12]
local left, every, counts = {}, {}, {}
for kind = 1, 6 do
    left[kind], every[kind] = tonumber(ARGV[11 + 2 * kind]), tonumber(ARGV[12 + 2 * kind])
    counts[kind] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
end
local x = '%x%x%x%x'
local reply = '^' .. x .. x .. '%-' .. x .. '%-' .. x .. '%-' .. x .. '%-' .. x .. x .. x .. '$'
local chords = {['.s'] = true, ['.j'] = true, ['.d'] = true, ['.t'] = true, ['.c'] = true}
local bindings, weighed = {}, {}

-- What a key that is no result is, by its name; a list of a free name may be a queue, which its binding tells.
local function other(key)
    if #key == 36 and find(key, reply) then
        local kind = may and ask('TYPE', key)
        return kind and kind.ok == 'list' and 4 or 6
    end
    if find(key, '_kombu.binding', 1, true) then
        bindings[#bindings + 1] = key
        return 5
    end
    if find(key, '.celery.pidbox', -14, true) or match(key, '^unacked$') or match(key, '^unacked_%l+$')
        or match(key, '[:_.%-]unacked$') or match(key, '[:_.%-]unacked_%l+$') or find(key, '^celeryev%.')
        or find(key, '[:_.%-]celeryev%.') then
        return 5
    end
    return 6
end

local function weigh(kind, key)
    local size = ask('MEMORY', 'USAGE', key, 'SAMPLES', elements)
    if type(size) ~= 'number' then
        if type(size) == 'table' and kind > 3 then
            may = false
        end
        return
    end
    local value, length = '', 0
    if kind == 1 then
        value = ask('GETRANGE', key, 0, whole - 1)
        if type(value) ~= 'string' then
            value = ''
        end
        length = #value
        if length == whole then
            length = call('STRLEN', key)
            if length > whole then
                value = sub(value, 1, head) .. call('GETRANGE', key, -tail, -1)
            end
        end
    end
    weighed[#weighed + 1] = {kind, key, size, length, value}
end

local cursor, seen, stretch, largest, now = ARGV[1], 0, tonumber(ARGV[2]), tonumber(ARGV[3]), started
repeat
    local before = now
    local answer = call('SCAN', cursor, 'COUNT', stretch)
    cursor = answer[1]
    local keys = answer[2]
    seen = seen + #keys
    for i = 1, #keys do
        local key, kind = keys[i], 1
        if sub(key, 1, tasks) ~= task or #key == tasks then
            if sub(key, 1, groups) ~= group or #key == groups then
                kind = other(key)
            else
                kind = chords[sub(key, -2)] and 3 or 2
            end
        end
        local count = counts[kind]
        if kind < 4 or may then
            local ttl = ask('PTTL', key)
            if ttl == -1 then
                count[2] = count[2] + 1
            elseif type(ttl) ~= 'number' then
                -- A slot of the cluster on its way, or a key that is not ours to look at.
                if kind > 3 then
                    may = false
                elseif not (find(ttl.err, 'cluster', 1, true) or find(ttl.err, 'slot', 1, true)) then
                    return ttl
                end
            elseif ttl >= 0 then
                local bucket
                if ttl > 86400000 then
                    bucket = ttl <= 604800000 and 7 or ttl <= 2592000000 and 8 or ttl <= 7776000000 and 9 or 10
                else
                    bucket = ttl > 21600000 and 6 or ttl > 3600000 and 5 or ttl > 60000 and 4 or 3
                end
                count[bucket] = count[bucket] + 1
            end
        end
        count[1] = count[1] + 1
        local more = left[kind]
        left[kind] = more - 1
        if more == 0 then
            left[kind] = every[kind] - 1
            if kind < 4 or may then
                weigh(kind, key)
            end
        end
    end
    now = clock()
    stretch = next_stretch(stretch, now - before, largest)
until cursor == '0' or seen >= most or now <= before or now - started >= seconds
for kind = 1, 6 do
    counts[kind] = table.concat(counts[kind], ' ')
end
return {cursor, seen, stretch, may and 1 or 0, bindings, table.concat(counts, ' '), table.concat(left, ' '), unpack(weighed)}
