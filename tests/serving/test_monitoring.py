"""Debian's Prometheus scrapes a real cluster: every query of the dashboard has an answer, and every alert can be read."""

import contextlib
import json
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from phi3_serve.launch.proxy import free_port
from phi3_serve.monitoring.alerts import ALERTS
from phi3_serve.monitoring.panels import ROWS
from tests.serving.cluster import ROOT, Cluster
from tests.support import ENDLESS

pytestmark = pytest.mark.cluster

MODEL = "phi-3-tiny"
HTTP_ERRORS = "ray_serve_num_deployment_http_error_requests_total"
NEEDS_OTHER_HARDWARE = {"GPUs"}
NEEDS_BATCHES = {"Batches"}  # the shared server keeps none
QUERIES = [
    (row, panel.title, query.expr.replace("$__rate_interval", "30s").replace("$model", ".*"))
    for row, panels in ROWS.items()
    for panel in panels
    for query in panel.queries
]


def discovery(server: Cluster) -> Path:
    """The file in which Ray tells Prometheus the metrics ports of all nodes."""
    return next(server.temporary.glob("**/prom_metrics_service_discovery.json"))


def published(server: Cluster) -> dict[str, float]:
    """The sums over all processes of the cluster, by metric, for one model."""
    sums: dict[str, float] = {}
    for entry in json.loads(discovery(server).read_text()):
        for target in entry["targets"]:
            with urllib.request.urlopen(f"http://{target}/metrics", timeout=10) as response:
                text = response.read().decode()
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    if sample.labels.get("model_name") == MODEL and "le" not in sample.labels:
                        sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    return sums


def until(holds: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.5)


def ask(server: Cluster, number: int) -> int:
    """Ask for a short answer; the tokens that it has."""
    asked = {"messages": [{"role": "user", "content": f"Count to {number}. " * 20}], "max_tokens": 24, **ENDLESS}
    answer = server.call("/v1/chat/completions", {"model": MODEL, **asked, "prompt_lookup_num_tokens": 4})
    assert answer.status == 200, answer.body
    tokens: int = answer.body["usage"]["completion_tokens"]
    return tokens


def stream(server: Cluster, number: int) -> None:
    body = {"model": MODEL, "prompt": f"Say {number}", "stream": True, "max_tokens": 24, **ENDLESS}
    request = urllib.request.Request(
        server.url + "/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        assert response.read().endswith(b"data: [DONE]\n\n")


def settled(server: Cluster) -> dict[str, float]:
    """What :func:`published` finds once no counter has changed for three reports: earlier requests are counted then."""
    sums, since, end = published(server), time.monotonic(), time.monotonic() + 60
    while time.monotonic() - since < 3:
        assert time.monotonic() < end
        time.sleep(0.5)
        found = published(server)
        if _counted(found) != _counted(sums):
            since = time.monotonic()
        sums = found
    return sums


def _counted(sums: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in sums.items() if name.endswith(("_total", "_sum", "_count"))}


def test_replicas_and_ingress_publish_what_they_did(server: Cluster) -> None:
    chosen, answered = "ray_phi3_serve_generation_tokens_total", "ray_phi3_serve_request_generation_tokens_sum"
    requests = "ray_phi3_serve_requests_total"
    ask(server, 0)
    until(lambda: chosen in published(server))
    before = settled(server)
    tokens = sum(ask(server, number) for number in range(3))

    def added(sums: dict[str, float]) -> list[float]:
        return [sums[name] - before.get(name, 0) for name in (chosen, answered, requests)]

    until(lambda: min(added(published(server))) > 0)
    after = settled(server)
    assert added(after) == [tokens, tokens, 3]
    assert after["ray_phi3_serve_num_requests_running"] == after["ray_phi3_serve_num_requests_in_flight"] == 0
    assert after["ray_phi3_serve_engine_info"] == after["ray_phi3_serve_num_replicas"] == 1
    assert after["ray_phi3_serve_model_load_seconds"] > 0


def lines_with(server: Cluster, words: str) -> set[str]:
    """The lines with ``words`` in the logs of requests, which a link shows a second time."""
    logs = server.temporary.glob("**/logs/serve/requests_*.log")
    return {line for log in logs for line in log.read_text().splitlines() if words in line}


def test_the_log_has_a_request_under_the_id_of_its_client(server: Cluster) -> None:
    name = f"mine-{time.monotonic_ns()}"
    request = urllib.request.Request(
        server.url + "/chat", b'{"prompt": "4711"}', {"Content-Type": "application/json", "x-request-id": name}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        assert response.headers["x-request-id"] == name
    until(lambda: bool(lines_with(server, name)))  # the line follows the answer
    (line,) = lines_with(server, name)
    found = json.loads(line)
    assert (found["request_id"], found["model"], found["status"]) == (name, MODEL, 200)
    assert found["completion_tokens"] > 0
    assert found["queue_s"] + found["prompt_s"] + found["answer_s"] <= found["seconds"]
    assert "4711" not in line


@dataclass
class Prometheus:
    url: str

    def get(self, path: str, **parameters: str) -> Any:
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=10) as response:
            answer = json.load(response)
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expr: str) -> list[Any]:
        result: list[Any] = self.get("query", query=expr)["result"]
        return result


@pytest.fixture
def prometheus(server: Cluster, tmp_path: Path) -> Iterator[Prometheus]:
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed: apt-get install prometheus")
    with scraping(server, tmp_path) as found:
        yield found


@contextlib.contextmanager
def scraping(server: Cluster, directory: Path) -> Iterator[Prometheus]:
    """A Prometheus with our alerts that asks all nodes of the cluster each second."""
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(ROOT / "monitoring" / "alerts.yaml")],
        "scrape_configs": [{"job_name": "ray", "file_sd_configs": [{"files": [str(discovery(server))]}]}],
    }
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    command = ["prometheus", f"--config.file={directory}/prometheus.yml", f"--storage.tsdb.path={directory}/data"]
    with (directory / "log-of-prometheus").open("wb") as log:
        process = subprocess.Popen(
            [*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=subprocess.STDOUT
        )
    try:
        found = Prometheus(f"http://127.0.0.1:{port}")
        until(lambda: _is_up(found))
        yield found
    finally:
        process.terminate()
        process.wait(30)


def _is_up(prometheus: Prometheus) -> bool:
    with contextlib.suppress(OSError):
        return bool(prometheus.query("up == 1"))
    return False


def test_every_query_of_the_dashboard_has_an_answer(server: Cluster, prometheus: Prometheus) -> None:
    """Queries that look at rates need two samples with a request between them, so requests go on until all have."""
    missing = QUERIES
    end = time.monotonic() + 120
    with ThreadPoolExecutor(2) as pool:
        while missing := [one for one in missing if not prometheus.query(one[2])]:
            expected = [m for m in missing if m[0] not in NEEDS_OTHER_HARDWARE | NEEDS_BATCHES]
            if not expected:
                break
            assert time.monotonic() < end, expected
            list(pool.map(lambda number: ask(server, number), range(2)))
            stream(server, 1)
            time.sleep(1)
    assert {row for row, _, _ in missing} <= NEEDS_OTHER_HARDWARE | NEEDS_BATCHES
    # who refuses in HAProxy is read from this metric of Ray, which HAProxy feeds
    assert server.call(f"/{MODEL}/chat", {"prompt": "a", "generate_kwargs": {"eos_token_id": 9999}}).status == 400
    of_ingress = f'{HTTP_ERRORS}{{deployment="ingress",error_code="400"}}'
    until(lambda: bool(prometheus.query(of_ingress)))
    rules = {rule["name"]: rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]}
    assert set(rules) == {alert.name for alert in ALERTS}
    for name, rule in rules.items():
        assert rule.get("lastError", "") == "", name
    firing = {
        alert["labels"]["alertname"] for alert in prometheus.get("alerts")["alerts"] if alert["state"] == "firing"
    }
    assert not firing - {"Phi3ServeKernelsReplaced"}  # where no compiler built the kernels
