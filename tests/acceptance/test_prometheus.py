"""Prometheus itself on what we serve: its linter, its alert rules, and a real scrape."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from tests.acceptance.daemon import daemon, eventually, write_policy
from tests.servers import ROOT, debian_binary, debian_environment, quiet_port

DEPLOY = ROOT / "deploy" / "prometheus"

POLICY = """
backends:
  results: {{url: "{results}"}}
  cache: {{url: "{cache}"}}
jobs:
  expire: {{backend: [results, cache], schedule: every 1s, keep: 90d}}
  archive: {{backend: results, schedule: every 1s, older_than: 7d}}
  partition: {{backend: results, schedule: every 1s}}
  vacuum: {{backend: results, schedule: every 1s}}
  redis-memory: {{schedule: every 1s}}
  pool-health: {{schedule: every 1s}}
"""


def promtool(*arguments: str | Path, given: bytes = b"") -> str:
    """What promtool says; fails where it finds fault."""
    done = subprocess.run(
        [debian_binary("promtool"), *arguments],
        input=given, capture_output=True, env=debian_environment(), timeout=60, check=False,
    )  # fmt: skip
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, said
    return said


def test_the_rules_and_the_example_are_valid() -> None:
    promtool("check", "rules", DEPLOY / "backendops.rules.yml")
    promtool("check", "config", DEPLOY / "prometheus.yml")


def test_the_alerts_come_when_they_should() -> None:
    promtool("test", "rules", ROOT / "tests" / "acceptance" / "alerts.yml")


def test_a_real_prometheus_scrapes_the_daemon(
    tmp_path: Path, postgres18_url: str, valkey_url: str, fill_celery_table: Callable[..., None]
) -> None:
    fill_celery_table(postgres18_url, 50)
    prometheus = debian_binary("prometheus")
    with daemon(write_policy(tmp_path, POLICY.format(results=postgres18_url, cache=valkey_url))) as running:
        assert promtool("check", "metrics", given=running.get("/metrics").body) == "", "clean at zero"
        eventually(
            lambda: running.value("backendops_job_runs_total", job="redis-memory", backend="cache", outcome="completed")
        )
        assert promtool("check", "metrics", given=running.get("/metrics").body) == "", "clean with values"

        config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
        scrape = config["scrape_configs"][0]
        scrape["scrape_interval"] = "1s"
        scrape["static_configs"][0]["targets"] = [running.url.removeprefix("http://").rstrip("/")]
        config["global"] = {"evaluation_interval": "1s"}
        config["rule_files"] = [str(DEPLOY / "backendops.rules.yml")]
        (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
        port = quiet_port()
        with (tmp_path / "prometheus.log").open("wb") as log:
            server = subprocess.Popen(
                [prometheus, f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/tsdb",
                 f"--web.listen-address=127.0.0.1:{port}"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=debian_environment(),
            )  # fmt: skip

        def ask(path: str) -> Any:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            try:
                connection.request("GET", f"/api/v1/{path}")
                response = connection.getresponse()
                if response.status == 503:
                    raise ConnectionError("Prometheus is not ready yet")
                answer = json.loads(response.read())
            finally:
                connection.close()
            assert answer["status"] == "success", answer
            return answer["data"]

        def query(text: str) -> dict[str, str]:
            result = ask(f"query?query={quote(text)}")["result"]
            return {series["metric"].get("backend", ""): series["value"][1] for series in result}

        try:
            eventually(lambda: query("backendops_backend_up") == {"results": "1", "cache": "1"})
            assert query('up{job="backendops"}') == {"": "1"}
            assert float(query('backendops_pool_connections_limit{backend="results"}')["results"]) > 0
            names = set(ask("label/__name__/values"))
            rules = eventually(
                lambda: [r for g in ask("rules")["groups"] for r in g["rules"] if r["health"] != "unknown"]
            )
            assert [rule["lastError"] for rule in rules if rule["health"] != "ok"] == []
            used = {name for rule in rules for name in re.findall(r"backendops_\w+", rule["query"])}
            assert used - names == set(), "an alert on a series that does not exist never comes"
            assert running.stop() == 0
        finally:
            server.terminate()
            server.wait(20)
