-- Before every script: the server's own clock, in seconds, by which a call ends in time. Since 7.2 TIME stands still
-- while a script runs, and before there is no os.
local known, clock = pcall(function() return os.clock end)
if not known then
    clock = function()
        local time = redis.call('TIME')
        return time[1] + time[2] / 1000000
    end
end
