-- Before every script: the server's own clock, in seconds, by which a call ends in time. Since 7.2 TIME stands still
-- while a script runs, and before 7.4 there is no os: on 7.2 a call ends after one stretch.
local known, clock = pcall(function() return os.clock end)
if not known then
    clock = function()
        local time = redis.call('TIME')
        return time[1] + time[2] / 1000000
    end
end

-- How many keys the next SCAN asks for, from what the last ones took: one that takes longer than a tenth of the most a
-- call may is halved, as what one key takes is only known when its stretch is through.
local function next_stretch(count, took, most)
    if took > 0.0004 and count > 5 then
        return math.floor(count / 2)
    elseif took < 0.0002 and count < most then
        return math.min(count * 2, most)
    end
    return count
end
