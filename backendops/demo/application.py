"""A Celery application such as backendops looks after; the demo's workers run it, once for each backend."""

from __future__ import annotations

import os
import random
import time
from typing import Any, Final

from celery import Celery, Task, chord, group

BROKER: Final = "DEMO_BROKER_URL"
BACKEND: Final = "DEMO_RESULT_BACKEND"
QUEUE: Final = "DEMO_QUEUE"


def application(broker: str, backend: str = "disabled://", queue: str = "celery") -> Celery:
    """The application with its results in `backend`, whose tasks run from `queue`; without one it only sends."""
    made = Celery("demo", set_as_current=False)
    made.conf.update(
        broker_url=broker,
        # SQLAlchemy 2.1 would look for psycopg 3.
        result_backend=backend.replace("db+postgresql://", "db+postgresql+psycopg2://"),
        task_default_queue=queue,
        # The mistake that fills a Redis: nothing tells it when a result may go. The job `expire` does.
        result_expires=None,
        result_extended=True,
        task_track_started=True,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
    )
    made.task(visit, name="shop.visit", bind=True)
    made.task(send_mail, name="mail.send")
    made.task(build_report, name="reports.build", bind=True, max_retries=2, default_retry_delay=0)
    made.task(charge, name="payments.charge")
    made.task(total, name="reports.total")
    return made


def visit(task: Task, tasks: int) -> int:
    """A task that sends others: single ones, a group and a chord."""
    call = task.app.signature
    for number in range(tasks - 10):
        single = (
            call("payments.charge", args=[f"{number:04}"]) if number % 10 == 0 else call("mail.send", args=[number])
        )
        single.apply_async()
    group([call("reports.build", args=[number]) for number in range(5)], app=task.app).apply_async().save()
    chord([call("reports.build", args=[number]) for number in range(4)], app=task.app)(call("reports.total"))
    return tasks


def send_mail(user: int) -> dict[str, Any]:
    """A task that succeeds."""
    time.sleep(random.uniform(0, 0.01))  # noqa: S311 - a pause, not a secret
    return {"user": user, "sent": True}


def build_report(task: Task, number: int) -> int:
    """A task that is sometimes tried again."""
    if random.random() < 0.3 and task.request.retries < 2:  # noqa: S311, PLR2004 - a dice, and max_retries above
        raise task.retry()
    return number * number


def charge(card: str) -> None:
    """A task that fails."""
    raise ValueError(f"card {card} was declined")


def total(numbers: list[int]) -> int:
    """The end of a chord."""
    return sum(numbers)


if BROKER in os.environ:
    # What `celery --app backendops.demo.application worker` looks for.
    app = application(os.environ[BROKER], os.environ[BACKEND], os.environ[QUEUE])
