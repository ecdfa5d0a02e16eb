"""Stores a few results of each kind through the Celery that runs this: a program of its own, for an old one's Python.

The result_backend URL comes by the environment; what was stored goes to standard output as JSON.
"""

from __future__ import annotations

import json
import os
import uuid

import celery
from celery import Celery, states
from celery.app.task import Context
from celery.result import AsyncResult, GroupResult


def main() -> None:
    app = Celery("old", set_as_current=True)
    app.conf.update(
        result_backend=os.environ["RESULTS_URL"],
        broker_url="memory://",
        result_extended=True,
        result_serializer="json",
        accept_content=["json"],
    )
    backend = app.backend
    ids = []
    for number, (state, result, traceback) in enumerate(
        [
            (states.SUCCESS, {"number": 1, "text": "naïve ☃", "bytes": "\x00\\x"}, None),
            (states.FAILURE, ValueError("boom", 1), "Traceback: …"),
            (states.RETRY, KeyError("again"), "Traceback: …"),
            (states.STARTED, {"pid": 1, "hostname": "worker@old"}, None),
            (states.SUCCESS, None, None),
            (states.SUCCESS, "x" * 5000, None),
        ]
    ):
        task_id = str(uuid.uuid4())
        request = Context(
            id=task_id,
            task="reports.build",
            args=[number, "a"],
            kwargs={"user": number},
            hostname="worker@old",
            retries=0,
            delivery_info={"routing_key": "celery"},
            children=[],
        )
        if state == states.RETRY:
            # From STARTED to RETRY Celery dates a result that has not finished.
            backend.store_result(task_id, {}, states.STARTED, request=request)
        backend.store_result(task_id, result, state, traceback=traceback, request=request)
        ids.append(task_id)
    group = GroupResult(str(uuid.uuid4()), [AsyncResult(one, app=app) for one in ids[:2]], app=app)
    group.save(backend=backend)
    print(json.dumps({"version": celery.__version__, "ids": ids, "group": group.id}))  # noqa: T201 - its answer


if __name__ == "__main__":
    main()
