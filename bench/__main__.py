"""`make bench`: every comparison in one run, as a table; `--write` keeps it in docs/benchmarks.md."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from bench import partitions, partman, postgres, redis_bench
from bench.goals import Goal, table

DOCS = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
START, END = "<!-- table: written by `make bench` -->", "<!-- end of table -->"


def median(results: list[postgres.Result], of: str) -> float:
    """The middle one of a figure over the rounds."""
    return statistics.median(getattr(result, of) for result in results)


def waited(results: list[postgres.Result]) -> float:
    """The writer's p99 beside a contestant, in seconds, over all rounds: one round of the quick ones is too short."""
    return postgres.p99([wait for result in results for wait in result.waits])


def ratio(ours: list[postgres.Result], theirs: list[postgres.Result]) -> float:
    """Our rate divided by theirs, round by round, the middle one."""
    return statistics.median(one.rate / other.rate for one, other in zip(ours, theirs, strict=True))


def removing(rows: int, rounds: int, memory_rows: int) -> list[Goal]:
    """Archive and expire beside a writer, then without an index, then how memory grows with the table."""
    goals: list[Goal] = []
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory, postgres.server(Path(directory)) as server:
        postgres.fill(server, rows)
        results, alone = postgres.rounds(server, list(postgres.CONTESTANTS), rounds)
        idle = postgres.p99(alone)
        for job, baseline, least, least_loop in (
            ("archive", "archive: one statement", 1.0, 1.5),
            ("expire", "expire: one DELETE", 0.75, 2.0),
        ):
            ours, as_it_is = results[f"{job}: backendops, full"], results[f"{job}: backendops, as it is"]
            one, loop = baseline.partition(": ")[2], "loop of 5,000"
            full = f"{job}, full speed"
            goals += [
                Goal(f"{job}: the writer's p99 against its idle p99", waited(as_it_is) / idle, 2, "×", most=True),
                Goal(f"{job}: rate meanwhile", median(as_it_is, "rate"), None, "rows/s"),
                Goal(f"{full}: rate against {one}", ratio(ours, results[baseline]), least, "×"),
                Goal(f"{full}: rate against a {loop}", ratio(ours, results[f"{job}: {loop}"]), least_loop, "×"),
                Goal(f"{full}: longest statement", median(ours, "longest") * 1000, 300, "ms", most=True),
                Goal(f"{full}: rate of the last tenth against the first", median(ours, "last_to_first"), 0.9, "×"),
                Goal(f"{full}: the writer's p99 against its idle p99", waited(ours) / idle, None, "×"),
                *(
                    Goal(f"{job}: the writer's p99 beside {said}", waited(results[f"{job}: {other}"]) / idle, None, "×")
                    for other, said in ((one, one), (loop, f"a {loop}"))
                ),
            ]
            if job == "archive":
                again = [postgres.run_again(server, "archive: backendops, full", rows) for _ in range(rounds)]
                name = "archive, full speed: the same, where the archive holds as many rows already"
                goals.append(Goal(name, median(again, "last_to_first"), 0.9, "×"))
        cleanup = results["expire: celery.backend_cleanup"]
        goals.append(
            Goal(
                "expire: rate against celery.backend_cleanup",
                ratio(results["expire: backendops, full"], cleanup),
                None,
                "×",
            )
        )
        for job in ("archive", "expire"):
            bare = postgres.run(server, f"{job}: backendops, full", "DROP INDEX ix_celery_taskmeta_date_done")
            goals.append(
                Goal(
                    f"{job}: time without an index against with one",
                    bare.seconds / median(results[f"{job}: backendops, full"], "seconds"),
                    3,
                    "×",
                    most=True,
                )
            )
        peaks = {rows: median(results["archive: backendops, full"], "peak_bytes")}
        show(results, idle)
    for many in (100_000, memory_rows):
        with tempfile.TemporaryDirectory(dir="/var/tmp") as directory, postgres.server(Path(directory)) as server:
            postgres.fill(server, many)
            peaks[many] = postgres.run(server, "archive: backendops, full").peak_bytes
    grown = (max(peaks.values()) - peaks[100_000]) / 2**20
    goals.append(Goal(f"archive: memory from 100,000 to {memory_rows:,} rows", grown, 10, "MiB more", most=True))
    return goals


def show(results: dict[str, list[postgres.Result]], idle: float) -> None:
    """The figures behind the ratios, for whoever wants to know this machine."""
    sys.stderr.write(f"writer alone: p99 {idle * 1000:.1f} ms\n")
    for name, rounds in results.items():
        rate, longest = median(rounds, "rate"), median(rounds, "longest") * 1000
        beside, peak = waited(rounds) * 1000, median(rounds, "peak_bytes") / 2**20
        sys.stderr.write(
            f"{name:31} {rate:9,.0f} rows/s  longest {longest:7,.0f} ms  writer p99 {beside:6.1f} ms  {peak:5.0f} MiB\n"
        )


def main() -> None:
    """Measure, print, and exit with 1 where a goal is missed."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory-rows", type=int, default=5_000_000)
    parser.add_argument("--partition-rows", type=int, default=5_000_000)
    parser.add_argument("--keys", type=int, default=1_000_000, help="results in Redis")
    parser.add_argument("--write", action="store_true", help="keep the table in docs/benchmarks.md")
    arguments = parser.parse_args()
    goals = removing(arguments.rows, arguments.rounds, arguments.memory_rows)
    goals += partitions.retiring(arguments.partition_rows, arguments.rounds)
    goals += partman.comparing(arguments.partition_rows, arguments.rounds)
    goals += redis_bench.measure(arguments.keys, arguments.rounds)
    text = table(goals)
    sys.stdout.write(text)
    if arguments.write:
        document = DOCS.read_text(encoding="utf-8")
        before, _, rest = document.partition(START)
        when = f"{datetime.now(UTC):%Y-%m-%d}, {arguments.rows:,} rows, {arguments.rounds} rounds"
        DOCS.write_text(f"{before}{START}\n\n{when}:\n\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    sys.exit(any(goal.missed for goal in goals))


if __name__ == "__main__":
    main()
