-- One call of the sweep: as many stretches of the keyspace as fit into its time; all between reading a key and
-- changing it is one step for every other client, so nothing has to be compared.
-- ARGV: cursor, pattern, keys of the first SCAN and of the largest, most keys, seconds, task prefix, group prefix, 'write' or 'count', now, cutoff,
--   group's cutoff, chord's cutoff, shorten (1 or 0), shortest time to live, what it is spread over, bytes of a value
--   read whole, bytes of head, bytes of tail, python (1: let the caller decide on every finished result),
--   then a state and its cutoff, as often as needed.
--   Moments and lengths are milliseconds; an empty cutoff keeps for ever.
-- Returns {cursor, examined, keys of the next SCAN, given, shortened, removed, unfinished, unreadable, kept for ever, moment of the oldest,
--   {key, type, length, value or its two ends, has a time to live}...}: what is not certain here is for the caller.
-- Group and chord keys are not read: that would make them look used, and how long they were idle is their only age.
local call, pcall, sub, find, match = redis.call, redis.pcall, string.sub, string.find, string.match
local started, most, seconds = clock(), tonumber(ARGV[5]), tonumber(ARGV[6])
local task, group, writes, now = ARGV[7], ARGV[8], ARGV[9] == 'write', tonumber(ARGV[10])
local cutoff, group_cutoff, chord_cutoff = tonumber(ARGV[11]), tonumber(ARGV[12]), tonumber(ARGV[13])
local shorten, shortest, spread = ARGV[14] == '1', tonumber(ARGV[15]), tonumber(ARGV[16])
local whole, head, tail, python = tonumber(ARGV[17]), tonumber(ARGV[18]), tonumber(ARGV[19]), ARGV[20] == '1'
local own_cutoff, has_own = {}, {}
for i = 21, #ARGV, 2 do
    has_own[ARGV[i]], own_cutoff[ARGV[i]] = true, tonumber(ARGV[i + 1])
end
local given, shortened, removed, unfinished, unreadable, kept, oldest = 0, 0, 0, 0, 0, 0, ''
local uncertain, told = {}, 0
-- Bytes of values in one answer: to write down more of them takes longer than to read them did.
local most_told = 262144
local parts = {['.s'] = 'string', ['.j'] = 'zset', ['.d'] = 'set', ['.t'] = 'string', ['.c'] = 'string'}

-- Days since 1970 of a date; most results of a stretch share theirs.
local known = {}
local function days(date)
    local found = known[date]
    if found == nil then
        local y, m, d = match(date, '^(%d%d%d%d)%-(%d%d)%-(%d%d)$')
        y, m, d = tonumber(y), tonumber(m), tonumber(d)
        if y == nil or m < 1 or m > 12 or d < 1 or d > 31 or y < 1970 then
            found = false
        else
            if m <= 2 then
                y, m = y - 1, m + 12
            end
            found = 365 * y + math.floor(y / 4) - math.floor(y / 100) + math.floor(y / 400)
                + math.floor((153 * (m - 3) + 2) / 5) + d - 719469
        end
        known[date] = found
    end
    return found
end

-- The moment a result was done, in both of Celery's spellings; nil for any other.
local function moment(text)
    local day = days(sub(text, 1, 10))
    local hour, minute, second, zone = match(text, '^T(%d%d):(%d%d):(%d%d%.?%d*)(.*)$', 11)
    if not day or not hour then
        return nil
    end
    local offset = 0
    if zone ~= '' and zone ~= '+00:00' then
        local sign, hours, minutes = match(zone, '^([+-])(%d%d):(%d%d)$')
        if not sign then
            return nil
        end
        offset = (hours * 60 + minutes) * (sign == '-' and -1 or 1)
    end
    return ((day * 24 + hour) * 60 + minute - offset) * 60000 + second * 1000
end

local function task_key(key, ttl)
    -- Of another type than Celery's, it is somebody else's.
    local value = pcall('GETRANGE', key, 0, whole - 1)
    if type(value) ~= 'string' then
        return value.err and not find(value.err, 'WRONGTYPE', 1, true) and value or nil
    end
    local length = #value
    if length == whole then
        length = call('STRLEN', key)
        if length > whole then
            value = sub(value, 1, head) .. call('GETRANGE', key, -tail, -1)
        end
    end
    local state = match(value, '^{"status": "([^"\\]+)", "result": ')
    -- Celery writes the task's own id last, its date once; a result or an argument may hold another date.
    local ends = '"task_id": "' .. sub(key, #task + 1) .. '"}'
    local at = find(value, '"date_done": ', 1, true)
    if python or length > whole or not state or not at or sub(value, -#ends) ~= ends
        or find(value, '"date_done": ', at + 13, true) then
        local first = string.byte(value, 1)
        -- Neither an object of JSON nor compressed by Celery: nobody can tell its age.
        if first ~= 123 and first ~= 0 then
            unreadable = unreadable + 1
        else
            uncertain[#uncertain + 1] = {key, 'string', length, value, ttl}
            told = told + #value
        end
        return nil
    end
    if sub(value, at + 13, at + 16) == 'null' then
        unfinished = unfinished + 1
        return nil
    end
    local done = moment(match(value, '^"([^"]*)"', at + 13) or '')
    if not done then
        uncertain[#uncertain + 1] = {key, 'string', length, value, ttl}
        return nil
    end
    local due = cutoff
    if has_own[state] then
        due = own_cutoff[state]
    end
    if not due then
        kept = kept + 1
        return nil
    end
    -- A date in the future keeps nothing longer.
    local left = math.min(done, now) - due
    if left < shortest then
        local a, b = string.byte(key, -2, -1)
        left = shortest + (a * 16 + b) * 1000 % spread
    end
    -- What is within a shortest time of its keeping is not shortened again by every sweep.
    if ttl ~= -1 and ttl <= left + shortest + spread then
        return nil
    end
    if oldest == '' or done < oldest then
        oldest = done
    end
    if writes then
        call('PEXPIRE', key, string.format('%.0f', left))
    end
    if ttl == -1 then
        given = given + 1
    else
        shortened = shortened + 1
    end
    return nil
end

-- Milliseconds since the last use; nil under an LFU policy, for what is not there, and for a small number before Redis
-- 8 and Valkey 8.1: keys of one such value share it, and the time of its last use.
local function idle(key)
    local found = pcall('OBJECT', 'IDLETIME', key)
    if type(found) ~= 'number' or pcall('OBJECT', 'REFCOUNT', key) == 2147483647 then
        return nil
    end
    return found * 1000
end

local function group_key(key, ttl)
    if ttl ~= -1 or call('TYPE', key).ok ~= 'string' then
        return
    end
    if not group_cutoff then
        kept = kept + 1
        return
    end
    if writes then
        local left = math.max(now - group_cutoff - (idle(key) or 0), shortest)
        call('PEXPIRE', key, string.format('%.0f', left))
    end
    given = given + 1
end

-- A part of a chord is removed with its chord: while any part of it is in use, none gets a time to live, as a chord
-- may run for longer than results are kept.
local function chord_key(key, ttl, part)
    local kind = call('TYPE', key).ok
    if (kind ~= parts[part] and not (part == '.j' and kind == 'list')) or (ttl ~= -1 and not shorten) then
        return
    end
    -- Of a chord these are a number, a token or a word; a saved group may have such a name, and is an object.
    if kind == 'string' and not find(call('GETRANGE', key, 0, 0), '^%w') then
        group_key(key, ttl)
        return
    end
    if not chord_cutoff then
        kept = kept + 1
        return
    end
    local stem, keep = sub(key, 1, -3), now - chord_cutoff
    local quiet = idle(key)
    for other in pairs(parts) do
        -- In a cluster the other parts are on other nodes; Celery has no chords there.
        local used = other ~= part and idle(stem .. other)
        if used and (not quiet or used < quiet) then
            quiet = used
        end
    end
    if not quiet then
        if ttl == -1 then
            given = given + 1
            if writes then
                call('PEXPIRE', key, string.format('%.0f', keep))
            end
        end
        return
    end
    local finished = pcall('GET', stem .. '.c') == 'done'
    if not finished and pcall('EXISTS', stem .. '.s') == 0 then
        -- Without its size a chord can never call back: it failed, or this is a counter left over. While its header
        -- is being sent the size is not there yet.
        finished = quiet >= math.min(keep, 86400000)
    end
    if finished or quiet >= keep then
        removed = removed + 1
        if writes then
            call('UNLINK', key)
        end
    end
end

local cursor, examined, stretch, largest, at = ARGV[1], 0, tonumber(ARGV[3]), tonumber(ARGV[4]), started
repeat
    local before = at
    local answer = call('SCAN', cursor, 'MATCH', ARGV[2], 'COUNT', stretch)
    cursor, examined = answer[1], examined + stretch
    for _, key in ipairs(answer[2]) do
        local ttl = pcall('PTTL', key)
        if type(ttl) ~= 'number' then
            -- A slot of the cluster on its way to another node; every other refusal ends the sweep.
            if not (find(ttl.err, 'cluster', 1, true) or find(ttl.err, 'slot', 1, true)) then
                return ttl
            end
        elseif ttl == -1 or (shorten and ttl > 0) then
            if sub(key, 1, #task) == task then
                if #key > #task then
                    local refused = task_key(key, ttl)
                    if refused then
                        return refused
                    end
                end
            elseif sub(key, 1, #group) == group and #key > #group then
                local part = sub(key, -2)
                if parts[part] then
                    chord_key(key, ttl, part)
                else
                    group_key(key, ttl)
                end
            end
        end
    end
    at = clock()
    stretch = next_stretch(stretch, at - before, largest)
until cursor == '0' or examined >= most or told >= most_told or at <= before or at - started >= seconds
if oldest ~= '' then
    oldest = string.format('%.0f', oldest)
end
return {cursor, examined, stretch, given, shortened, removed, unfinished, unreadable, kept, oldest, unpack(uncertain)}
