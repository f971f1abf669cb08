"""Dashboard, alerts and the page of metrics, without a cluster. tests/serving/test_monitoring.py asks a real one."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from phi3_serve.core.engine_info import Load
from phi3_serve.core.host_info import GpuInfo
from phi3_serve.engine_statistics import EngineStatistics
from phi3_serve.monitoring.__main__ import FILES
from phi3_serve.monitoring.alerts import ALERTS
from phi3_serve.monitoring.dashboard import dashboard
from phi3_serve.monitoring.panels import ROWS
from phi3_serve.observability.engine_metrics import EngineMetrics, EngineReading
from phi3_serve.observability.metrics import RequestMetrics
from tests.observability.test_engine_metrics import INFO

ROOT = Path(__file__).parents[2]
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()
GPU = GpuInfo(
    id="a",
    name="a",
    load_percent=1,
    temperature_celsius=1,
    memory_used_bytes=1,
    memory_total_bytes=1,
    power_watts=1,
    energy_joules=1,
)


def families() -> dict[str, str]:
    """Every metric of this project and its type."""
    reading = EngineReading(info=INFO, load=Load(1, 1, 1, 1), statistics=EngineStatistics(), load_s=1, gpu=GPU)
    registry = CollectorRegistry()
    registry.register(EngineMetrics("m", lambda: reading))
    found = [*registry.collect(), *RequestMetrics().registry.collect()]
    return {family.name: family.type for family in found}


def series() -> set[str]:
    """The names of their samples on a metrics port of Ray."""
    endings = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
    return {f"ray_{name}{ending}" for name, kind in families().items() for ending in endings[kind]}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_what_the_code_writes(name: str) -> None:
    assert (ROOT / name).read_text() == FILES[name](), "run: python -m phi3_serve.monitoring ."


def test_the_page_lists_every_metric() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    rows = "\n".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| `phi3_serve_"))
    assert set(re.findall(r"`(\w+)`", rows)) == set(families())


def test_queries_and_alerts_use_metrics_that_there_are() -> None:
    expressions = [query.expr for panels in ROWS.values() for panel in panels for query in panel.queries]
    expressions += [alert.expr for alert in ALERTS]
    used = {name for expr in expressions for name in re.findall(r"ray_\w+", expr)}
    assert used - series() == {"ray_serve_num_deployment_http_error_requests_total"}


def test_panels_do_not_overlap_and_have_ids_of_their_own() -> None:
    panels: list[Any] = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) == 23
    assert json.loads(FILES["monitoring/grafana-dashboard.json"]()) == dashboard()


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_an_alert_has_a_section_in_the_runbook(alert: Any) -> None:
    section = RUNBOOK.split(f"\n## {alert.name}\n")[1].split("\n## ")[0]
    assert f"**Meaning** ({alert.severity}):" in section
    assert "**Check**:" in section
    assert "**Fix**:" in section


def test_the_runbook_has_no_other_sections() -> None:
    assert set(re.findall(r"^## (\w+)$", RUNBOOK, re.MULTILINE)) == {alert.name for alert in ALERTS}


M = 'model_name="m"'
# For each alert the series that raise it, in the notation of promtool: start+step x times, one value a minute.
RAISES: dict[str, dict[str, str]] = {
    "Phi3ServeAbsent": {'ray_phi3_serve_model_state{model_name="m",state="ready"}': "_x60"},
    "Phi3ServeModelFailed": {f'ray_phi3_serve_model_state{{{M},state="failed"}}': "1x60"},
    "Phi3ServeModelLoadsForLong": {f'ray_phi3_serve_model_state{{{M},state="loading"}}': "1x60"},
    "Phi3ServeErrors": {
        f'ray_phi3_serve_requests_total{{{M},outcome="success"}}': "0+97x60",
        f'ray_phi3_serve_requests_total{{{M},outcome="EngineFailure"}}': "0+3x60",
    },
    "Phi3ServeEngineStuck": {
        f'ray_phi3_serve_num_requests_running{{{M},replica="r"}}': "2x60",
        f'ray_phi3_serve_iteration_tokens_total_count{{{M},replica="r"}}': "900x60",
    },
    "Phi3ServeReplicasEnd": {
        f"ray_phi3_serve_num_replicas{{{M}}}": "1x60",
        **{f'ray_phi3_serve_model_load_seconds{{{M},replica="r{n}"}}': f"_x{10 * n} 4x9 _x60" for n in range(5)},
    },
    "Phi3ServeRefusals": {
        f'ray_phi3_serve_requests_total{{{M},outcome="success"}}': "0+100x60",
        'ray_phi3_serve_refusals_total{refused_by="queue"}': "0+3x60",
        'ray_serve_num_deployment_http_error_requests_total{deployment="haproxy",error_code="429"}': "0+4x60",
    },
    "Phi3ServeQueueIsSlow": {
        f'ray_phi3_serve_request_queue_time_seconds_bucket{{{M},le="5.0"}}': "0+80x60",
        f'ray_phi3_serve_request_queue_time_seconds_bucket{{{M},le="10.0"}}': "0+100x60",
        f'ray_phi3_serve_request_queue_time_seconds_bucket{{{M},le="+Inf"}}': "0+100x60",
    },
    "Phi3ServeFirstTokenIsSlow": {
        f'ray_phi3_serve_time_to_first_token_seconds_bucket{{{M},le="10.0"}}': "0+95x60",
        f'ray_phi3_serve_time_to_first_token_seconds_bucket{{{M},le="30.0"}}': "0+100x60",
        f'ray_phi3_serve_time_to_first_token_seconds_bucket{{{M},le="+Inf"}}': "0+100x60",
    },
    "Phi3ServeCacheIsFull": {
        f"ray_phi3_serve_num_preemptions_total{{{M}}}": "0+12x60",
        f"ray_phi3_serve_kv_cache_usage_perc{{{M}}}": "0.97x60",
    },
    "Phi3ServeKernelsReplaced": {f"ray_phi3_serve_num_kernels_replaced{{{M}}}": "2x60"},
}
READY = {f'ray_phi3_serve_model_state{{{M},state="ready"}}': "1x60"}
HEALTHY = {
    **READY,
    f'ray_phi3_serve_model_state{{{M},state="failed"}}': "0x60",
    f'ray_phi3_serve_requests_total{{{M},outcome="success"}}': "0+100x60",
    f'ray_phi3_serve_requests_total{{{M},outcome="InvalidRequest"}}': "0+50x60",
    'ray_phi3_serve_refusals_total{refused_by="queue"}': "0+1x60",
    'ray_phi3_serve_refusals_total{refused_by="key"}': "0+90x60",
    f'ray_phi3_serve_num_requests_running{{{M},replica="r"}}': "2x60",
    f'ray_phi3_serve_iteration_tokens_total_count{{{M},replica="r"}}': "0+900x60",
    f"ray_phi3_serve_num_kernels_replaced{{{M}}}": "0x60",
    f"ray_phi3_serve_num_preemptions_total{{{M}}}": "0+1x60",
    f"ray_phi3_serve_kv_cache_usage_perc{{{M}}}": "0.97x60",
}


@pytest.mark.thorough
def test_each_alert_fires_when_it_should_and_none_in_health(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    assert set(RAISES) == {alert.name for alert in ALERTS}
    cases = [_case(name, {**({} if name == "Phi3ServeAbsent" else READY), **given}) for name, given in RAISES.items()]
    tests = {
        "rule_files": [str(ROOT / "monitoring" / "alerts.yaml")],
        "evaluation_interval": "1m",
        "tests": [*cases, _case("nothing", HEALTHY)],
    }
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(tests))
    done = subprocess.run([promtool, "test", "rules", str(tmp_path / "tests.yaml")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def _case(fires: str, given: dict[str, str]) -> dict[str, Any]:
    """After 50 minutes the alert ``fires`` and no other."""
    names = ["ALERTS{alertname=~'.+', alertstate='firing'}"]
    expected = [] if fires == "nothing" else [{"labels": f'{{alertname="{fires}"}}', "value": 1}]
    return {
        "name": fires,
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in given.items()],
        "promql_expr_test": [
            {"expr": f"count by (alertname) ({names[0]}) > bool 0", "eval_time": "50m", "exp_samples": expected}
        ],
    }
