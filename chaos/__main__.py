"""`make chaos`: kill archive, expire, partition, convert and restore 200 times, and the server 20 times."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from backendops.embedded import start_postgres
from chaos.store import Store, Sum

ROWS = 20_000
# One time in so many the command is left in peace, to know how long it takes now: a machine is not always as busy.
IN_PEACE = 6
BACKENDOPS = [sys.executable, "-m", "backendops"]
# Small batches: many commits, so that a random moment is more often between or inside one.
POLICY = """
version: 1
state: {state}
backends:
  results: {{url: "{url}"}}
jobs:
  archive: {{older_than: 7d, every: day, batch_size: 100, batch_time: 3ms, pace: full}}
  expire: {{keep: 8d, allow_unarchived: true, batch_size: 100, batch_time: 3ms, pace: full}}
  partition: {{every: day, keep: 12d, ahead: 2, quarantine: 7d}}
  drop: {{kind: partition, every: day, keep: 12d, ahead: 2, quarantine: 1s}}
"""
KEPT_BY_EXPIRE = "date_done IS NULL OR date_done > now() AT TIME ZONE 'UTC' - interval '7 days 23 hours'"
# What is in a partition that is past its time is dropped; what is younger than that never is.
KEPT_BY_DROP = "date_done IS NULL OR date_done > now() AT TIME ZONE 'UTC' - interval '11 days 23 hours'"
COMPLETED = 0
# After its server was killed a command has completed before, found nobody, or was broken off.
AFTER_THE_SERVER = (COMPLETED, 3, 75)
# A session is looked for as often as it takes no more than a batch's time in between.
LOOK_EVERY = 0.003
ARCHIVES = ("celery_taskmeta_archive", "celery_tasksetmeta_archive")
CONVERT = ["partition", "convert", "results", "--by", "id"]


@dataclass(frozen=True)
class Scene:
    """One command under fire: how its database is made ready, and what must stay the same."""

    name: str
    command: list[str]
    prepare: Callable[[Attack], None]
    finished: Callable[[Attack], bool]
    """Asked after a following run that completed: is its work really done?"""
    keeps: str = "true"


class Attack:
    """A private server, a policy, and the tally of what was done to them."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.store = Store(start_postgres(directory / "postgres", settings={"max_connections": "50"}))
        self.policy = directory / "policy.yaml"
        self.policy.write_text(POLICY.format(state=directory, url=self.store.celery_url), encoding="utf-8")
        self.kills: Counter[str] = Counter()
        self.late: Counter[str] = Counter()

    def start(self, command: list[str]) -> subprocess.Popen[str]:
        """The command as a process."""
        return subprocess.Popen(
            [*BACKENDOPS, "--policy", str(self.policy), *command],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def complete(self, command: list[str]) -> float:
        """Run the command to its end; the seconds it took."""
        began = time.monotonic()
        process = self.start(command)
        _, said = process.communicate()
        if process.returncode != COMPLETED:
            sys.exit(f"{' '.join(command)} exited {process.returncode}: {said}")
        return time.monotonic() - began

    def kill(self, scene: Scene, within: float, *, server: bool) -> bool:
        """SIGKILL the scene's command (or the server) in the middle of its work, from a random moment of its life on.

        False where it ended before.
        """
        process = self.start(scene.command)
        # Half a second of start-up changes nothing: the moments are spread over what follows.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=self.random.uniform(min(0.4, within / 2), 0.8 * within))
        with self.store.watched() as at_work:
            hit = self._catch(process, at_work, server=server)
        _, said = process.communicate()
        if server and hit:
            self.store.postgres.start()
            if process.returncode not in AFTER_THE_SERVER or "Traceback" in said:
                sys.exit(f"{scene.name} exited {process.returncode} after its server was killed: {said}")
        if not hit and process.returncode != COMPLETED:
            sys.exit(
                f"{scene.name} exited {process.returncode} by itself, after {self.kills[scene.name]} kills: {said}"
            )
        self.store.settle()
        (self.kills if hit else self.late)[scene.name] += 1
        return hit

    def _catch(self, process: subprocess.Popen[str], at_work: Callable[[], bool], *, server: bool) -> bool:
        """Strike once a transaction of the command's is seen that has written and not committed."""
        while process.poll() is None:
            if not server:
                # Or it would be past it before it is hit.
                process.send_signal(signal.SIGSTOP)
            if at_work():
                self.store.kill_server() if server else process.kill()
                return True
            process.send_signal(signal.SIGCONT)
            time.sleep(self.random.uniform(0, LOOK_EVERY))
        return False

    def must_be(self, scene: Scene, before: Sum, keeps: str) -> None:
        """End with the difference where anything that had to stay is not what it was."""
        now = self.store.sum(keeps)
        if now != before:
            sys.exit(f"{scene.name}: {before} has become {now} after {self.kills[scene.name]} kills")


def fill(attack: Attack) -> None:
    """Results of the last twenty days before the week that is kept."""
    attack.store.fill(ROWS, due=0.6, spread=timedelta(days=20))


def fill_archive(attack: Attack) -> None:
    """The same, with the due ones in the archive."""
    fill(attack)
    attack.complete(["run-once", "archive"])


def fill_quarantined(attack: Attack) -> None:
    """The same, with what is past its time in quarantine, and that over."""
    fill_archive(attack)
    attack.complete(["run-once", "drop"])
    time.sleep(1.5)


def fill_converted(attack: Attack) -> None:
    """The same, with the live table partitioned by us."""
    fill(attack)
    attack.complete(CONVERT)


def nothing_due(attack: Attack) -> bool:
    """Is every due row gone from the live tables?"""
    due = "date_done < now() AT TIME ZONE 'UTC' - interval '8 days'"
    return not any(_count(attack, f"{table} WHERE {due}") for table in ("celery_taskmeta", "celery_tasksetmeta"))


def archive_empty(attack: Attack) -> bool:
    """Has everything been brought back?"""
    return not any(_count(attack, table) for table in ARCHIVES)


def none_to_retire(attack: Attack) -> bool:
    """Is no partition older than what is kept attached?"""
    return not any(_count(attack, f"{table} WHERE done_at < now() - interval '14 days'") for table in ARCHIVES)


def none_to_drop(attack: Attack) -> bool:
    """Is none of them in quarantine either?"""
    tables = "pg_class AS c WHERE relkind = 'r' AND NOT relispartition AND relname LIKE 'celery%archive%'"
    return none_to_retire(attack) and _count(attack, tables) == 0


def _count(attack: Attack, rows: str) -> int:
    return int(attack.store.query(f"SELECT count(*) FROM {rows}")[0][0])


def is_partitioned(attack: Attack) -> bool:
    """Is the live table a partitioned one?"""
    kind = attack.store.query("SELECT relkind FROM pg_class WHERE oid = 'celery_taskmeta'::regclass")[0][0]
    return bool(kind == "p")


SCENES = (
    Scene("archive", ["run-once", "archive"], fill, nothing_due),
    Scene("expire", ["run-once", "expire"], fill, nothing_due, KEPT_BY_EXPIRE),
    Scene("partition", ["run-once", "partition"], fill_archive, none_to_retire),
    Scene("drop", ["run-once", "drop"], fill_quarantined, none_to_drop, KEPT_BY_DROP),
    Scene(
        "restore",
        ["restore", "--from", "2000-01-01", "--to", "2100-01-01", "--although-expired"],
        fill_archive,
        archive_empty,
    ),
    Scene("convert", CONVERT, fill, is_partitioned),
    Scene("undo", ["partition", "undo", "results"], fill_converted, lambda attack: not is_partitioned(attack)),
)


def play(attack: Attack, scene: Scene, kills: int, *, server: bool) -> None:
    """Kill the scene's command `kills` times; each time it is finished by a following run, it starts afresh."""
    if not kills:
        return
    left, alone = kills, 0.0
    for number in itertools.count():
        if not left:
            break
        scene.prepare(attack)
        # Of one moment: no row may come of age between two sums.
        keeps = scene.keeps.replace("now()", f"timestamptz '{datetime.now(UTC).isoformat()}'")
        before = attack.store.sum(keeps)
        in_peace = number % IN_PEACE == 0
        # A few kills on top of one another, then the following run must complete.
        for _ in range(0 if in_peace else min(left, attack.random.randint(1, 4))):
            hit = attack.kill(scene, alone, server=server)
            attack.must_be(scene, before, keeps)
            left -= hit
            if not hit:
                break  # nothing is left of its work: what is killed from here on would do nothing
        took = attack.complete(scene.command)
        alone = took if in_peace else alone
        attack.must_be(scene, before, keeps)
        if not scene.finished(attack):
            sys.exit(f"{scene.name}: the run after a kill completed, but its work is not done")
    what = "server" if server else "process"
    sys.stdout.write(
        f"{scene.name}: {kills} times SIGKILL to the {what} in the middle of a transaction, {before.rows:,} rows the "
        f"same each time ({attack.late[scene.name]} more ended before they were caught)\n"
    )
    attack.late.clear()
    sys.stdout.flush()


def main() -> None:
    """Play every scene; exits with what was lost or changed."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="of the process, over all scenes")
    parser.add_argument("--server-kills", type=int, default=20, help="of the server, over all scenes")
    parser.add_argument("--scene", action="append", choices=[scene.name for scene in SCENES])
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    scenes = [scene for scene in SCENES if not arguments.scene or scene.name in arguments.scene]
    sys.stdout.write(f"seed {arguments.seed}\n")
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        attack = Attack(Path(directory), arguments.seed)
        try:
            for number, scene in enumerate(scenes):
                play(attack, scene, _share(arguments.kills, len(scenes), number), server=False)
            for number, scene in enumerate(scenes):
                play(attack, scene, _share(arguments.server_kills, len(scenes), number), server=True)
        finally:
            attack.store.postgres.stop()


def _share(total: int, parts: int, number: int) -> int:
    return total // parts + (number < total % parts)


if __name__ == "__main__":
    main()
