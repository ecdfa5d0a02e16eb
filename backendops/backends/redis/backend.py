"""The Redis and Valkey backend: its policy keys, its connection and what it can do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, ClassVar, Self

import redis
from pydantic import Field, PrivateAttr, SecretStr, field_validator, model_validator

from backendops.backends.redis import cluster, connection, expire, lists, lock, memory, memory_of_cluster, pool
from backendops.backends.redis.address import SCHEMES, Address
from backendops.backends.redis.archive import HandOverOnRedis
from backendops.backends.redis.archiving import Archiving
from backendops.backends.redis.errors import acl_line, translated
from backendops.backends.redis.expire import Sweep
from backendops.backends.redis.keys import ResultKeys
from backendops.backends.redis.nodes import Node, Nodes, OneServer, SentinelMaster
from backendops.backends.redis.sentinel_options import SentinelOptions
from backendops.backends.redis.survey import Survey, queues
from backendops.contracts.backend import Backend, Lock, Standing
from backendops.contracts.capabilities import CanExpire, CanReportMemory, CanReportPool, MemoryReport, PoolReport
from backendops.contracts.errors import BackendRefused
from backendops.contracts.keyspace import CanSurveyKeys, Keyspace
from backendops.contracts.retention import Retention
from backendops.contracts.run import Limits, NoWatermarks, Pace, Preview, Steps, Watermarks
from backendops.contracts.units import Keep


class RedisBackend(Backend, CanExpire, HandOverOnRedis, CanReportMemory, CanReportPool, CanSurveyKeys):
    """Results as keys of a Redis or Valkey server."""

    kind: ClassVar[str] = "redis"
    schemes: ClassVar[tuple[str, ...]] = SCHEMES
    driver: ClassVar[tuple[str, str]] = ("redis", "redis")
    removes_at_once: ClassVar[bool] = False

    global_keyprefix: str = Field("", description="Celery's result_backend_transport_options: global_keyprefix.")
    master_name: str | None = Field(
        None, description="Celery's result_backend_transport_options: the master that sentinel:// follows."
    )
    sentinel_kwargs: SentinelOptions = Field(
        SentinelOptions(), description="Celery's result_backend_transport_options: the login to the sentinels."
    )
    min_other_sentinels: Annotated[int, Field(ge=0)] = Field(
        0, description="Celery's result_backend_transport_options: how many other sentinels one must know of."
    )
    cluster: bool = Field(
        False,
        description="The URL names a node of a Redis Cluster, and every master of it is looked at (Celery itself "
        "cannot use one).",
    )

    _nodes: Nodes | None = PrivateAttr(None)
    _client: redis.Redis | None = PrivateAttr(None)
    _limits: Limits = PrivateAttr(default_factory=Limits)
    _watermarks: Watermarks = PrivateAttr(default_factory=NoWatermarks)
    _archiving: Archiving | None = PrivateAttr(None)

    @field_validator("url")
    @classmethod
    def _readable_url(cls, url: SecretStr) -> SecretStr:
        Address.parse(url.get_secret_value())
        return url

    @model_validator(mode="after")
    def _master_is_named(self) -> Self:
        if self.address.scheme == "sentinel" and not self.master_name:
            raise ValueError("sentinel:// needs master_name: the name the sentinels know the master by")
        if self.cluster and self.address.scheme not in {"redis", "rediss"}:
            raise ValueError("a cluster is named by the URL of one of its nodes: redis:// or rediss://")
        if self.cluster and self.address.db:
            raise ValueError("a cluster has only database 0: leave the number after the slash out")
        return self

    @property
    def address(self) -> Address:
        """What the URL says."""
        return Address.parse(self.url.get_secret_value())

    @property
    def display_url(self) -> str:
        return str(self.address)

    @property
    def keys(self) -> ResultKeys:
        """The names of the application's result keys."""
        return ResultKeys(self.global_keyprefix)

    @property
    def lock_name(self) -> str:
        """The one key that backendops itself makes here; it always has a time to live."""
        return f"{self.keys.prefix}backendops:lock:{self.address.db}"

    @contextmanager
    def open(self, limits: Limits, watermarks: Watermarks) -> Iterator[Self]:
        with self._translated():
            probe = self._connect(limits, limits.connect_timeout / 2)
            try:
                connection.within(limits.connect_timeout, lambda: self._introduce(probe))
            finally:
                probe.close()
        # The statements of the run may take longer than an answer to a login.
        client = self._connect(limits, limits.statement_timeout)
        opened = self.model_copy()
        opened._client, opened._limits, opened._watermarks = client, limits, watermarks
        opened._nodes = opened._all_nodes(client)
        opened._archiving = Archiving(watermarks, datetime.now(UTC))
        try:
            yield opened
        finally:
            opened._nodes.close()
            client.close()

    def interrupt(self) -> None:
        if self._nodes is not None:
            self._nodes.give_up()

    def standing(self) -> Standing:
        with self._translated():
            server_now = self._server_now()
            role = self.client.info("replication")
        because = ""
        if not self.cluster and role.get("role") != "master":
            because = (
                f"{self.display_url} is a replica of {role.get('master_host')}:{role.get('master_port')}: "
                "name the master in the URL, or use sentinel://"
            )
        return Standing(server_now, read_only_because=because)

    @contextmanager
    def lock(self) -> Iterator[Lock | None]:
        self._refuse_when_read_only()
        client = self.client
        if isinstance(self.nodes, cluster.ClusterMasters):
            with self._translated():
                client = self.nodes.owner(self.lock_name)
        with lock.leased(client, self.lock_name, self._translated) as held:
            yield held

    def preview_expire(self, due: Retention) -> Preview:
        with self._translated():
            return expire.preview(self._sweep(due, writes=False), self.nodes, _replies(due, writes=False))

    def expire(self, due: Retention, pace: Pace) -> Steps:
        self._refuse_when_read_only()
        with self._translated():
            yield from expire.run(self._sweep(due), self.nodes, _replies(due), pace, self._watermarks)

    def report_memory(self, time_limit: timedelta) -> MemoryReport:
        with self._translated():
            looks = [
                memory.Look(
                    node.client,
                    db=self.address.db,
                    other=self._other_database,
                    keys=self.keys,
                    watermarks=self._watermarks,
                    node=node.address,
                )
                for node in (self.nodes.masters() if self.cluster else [Node("", self.client)])
            ]
            if not looks:
                raise redis.exceptions.ClusterDownError("CLUSTERDOWN no node has a slot")
            keyspace = self.survey_keys(time_limit)
            reports = [look.report(keyspace) for look in looks]
            return memory_of_cluster.together(reports) if self.cluster else reports[0]

    def survey_keys(
        self,
        time_limit: timedelta | None = None,
        *,
        top: int = 10,
        weigh_all: bool = False,
        progress: Callable[[float], None] | None = None,
    ) -> Keyspace:
        with self._translated():
            total = sum(int(node.client.dbsize()) for node in self.nodes.masters())
            survey = Survey(self.keys, total, datetime.now(UTC), weigh_all=weigh_all)
            if time_limit is not None:
                survey.read(self._watermarks)
            survey.go_on(self.nodes, time_limit, progress)
            if time_limit is not None:
                survey.write(self._watermarks)
            return survey.keyspace(top, lambda bindings: 0 if self.cluster else queues(self.client, bindings))

    def report_pool(self) -> PoolReport:
        with self._translated():
            # Half of the limit for connecting and half for the answers, so that both together stay within it.
            fresh = self._connect(self._limits, self._limits.connect_timeout / 2)
            try:
                return connection.within(self._limits.connect_timeout, lambda: pool.report(fresh))
            finally:
                fresh.close()

    @property
    def archiving(self) -> Archiving:
        """What this run's archiving knows; raises RuntimeError where the backend was not opened."""
        if self._archiving is None:
            raise RuntimeError("open the backend first")
        return self._archiving

    @property
    def result_keep(self) -> Keep | None:
        return self.result_expires

    def in_words(self) -> AbstractContextManager[None]:
        return translated(self.display_url, acl_line(self.address.username, self.keys.prefix))

    @property
    def nodes(self) -> Nodes:
        """The masters; raises RuntimeError where the backend was not opened."""
        if self._nodes is None:
            raise RuntimeError("open the backend first")
        return self._nodes

    @property
    def client(self) -> redis.Redis:
        """The connection of the run; raises RuntimeError where the backend was not opened."""
        if self._client is None:
            raise RuntimeError("open the backend first")
        return self._client

    def _introduce(self, probe: redis.Redis) -> None:
        connection.greet(probe)
        is_node = cluster.is_node(probe)
        if is_node and not self.cluster:
            raise BackendRefused(
                f"{self.display_url} is a node of a Redis Cluster",
                f"{cluster.NOT_FOR_CELERY}; with `cluster: true` backendops looks at every master of it",
            )
        if self.cluster and not is_node:
            raise BackendRefused(f"{self.display_url} is not a node of a cluster", "leave `cluster: true` out")

    def _all_nodes(self, client: redis.Redis) -> Nodes:
        if self.cluster:
            return cluster.ClusterMasters(client, self.address.hosts[0][0], self._other_node)
        if self.address.scheme == "sentinel":
            return SentinelMaster(client, lambda: self._connect(self._limits, self._limits.connect_timeout / 2))
        return OneServer(client)

    def _other_node(self, host: str, port: int) -> redis.Redis:
        return self._connect(self._limits, self._limits.statement_timeout, host=(host, port))

    def _sweep(self, due: Retention, *, writes: bool = True) -> Sweep:
        sweep = Sweep(self.keys, due, self._server_now(), writes=writes)
        sweep.one_by_one = self.cluster
        return sweep

    def _other_database(self, number: int) -> redis.Redis:
        return self._connect(self._limits, self._limits.statement_timeout, number)

    def _connect(
        self,
        limits: Limits,
        answer_timeout: timedelta,
        database: int | None = None,
        host: tuple[str, int] | None = None,
    ) -> redis.Redis:
        address = self.address
        return connection.connect(
            replace(
                address,
                db=address.db if database is None else database,
                hosts=address.hosts if host is None else (host,),
            ),
            connect_timeout=limits.connect_timeout / 2,
            answer_timeout=answer_timeout,
            master_name=self.master_name,
            sentinel_options=self.sentinel_kwargs.as_redis(),
            min_other_sentinels=self.min_other_sentinels,
        )

    def _server_now(self) -> datetime:
        seconds, microseconds = self.client.time()
        return datetime.fromtimestamp(seconds, UTC) + timedelta(microseconds=microseconds)

    def _translated(self) -> AbstractContextManager[None]:
        return self.in_words()

    def _refuse_when_read_only(self) -> None:
        if self._limits.read_only:
            raise BackendRefused(f"{self.display_url} was opened for reading only")


def _replies(due: Retention, *, writes: bool = True) -> lists.Replies | None:
    rules = due.keys
    if rules.rpc_idle is None and rules.pidbox_idle is None:
        return None
    return lists.Replies(rules.rpc_idle, rules.pidbox_idle, writes=writes)
