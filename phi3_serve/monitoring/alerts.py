"""The alerts, as a file of rules for Prometheus. docs/runbook.md has a section for each."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import yaml

RUNBOOK = "https://github.com/phi3-serve/phi3-serve/blob/main/docs/runbook.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One alert. ``severity``: critical wakes somebody, warning waits for the morning."""

    name: str
    expr: str
    lasts: str  # how long the expression must be true
    severity: Literal["critical", "warning"]
    summary: str  # labels as {{ $labels.model_name }}


ALERTS = (
    Alert(
        name="Phi3ServeAbsent",
        expr="absent(ray_phi3_serve_model_state)",
        lasts="5m",
        severity="critical",
        summary="No ingress reports anything.",
    ),
    Alert(
        name="Phi3ServeModelFailed",
        expr='max by (model_name, state) (ray_phi3_serve_model_state{state=~"failed|unplaceable"}) == 1',
        lasts="5m",
        severity="critical",
        summary="Model {{ $labels.model_name }} is {{ $labels.state }}.",
    ),
    Alert(
        name="Phi3ServeModelLoadsForLong",
        expr='max by (model_name) (ray_phi3_serve_model_state{state="loading"}) == 1',
        lasts="30m",
        severity="warning",
        summary="Model {{ $labels.model_name }} is loading for half an hour.",
    ),
    Alert(
        name="Phi3ServeErrors",
        expr='sum by (model_name) (rate(ray_phi3_serve_requests_total{outcome=~"EngineFailure|ReplicaLost"}[5m]))'
        " / sum by (model_name) (rate(ray_phi3_serve_requests_total[5m])) > 0.01",
        lasts="5m",
        severity="critical",
        summary="{{ $value | humanizePercentage }} of the requests to {{ $labels.model_name }} fail in the server.",
    ),
    Alert(
        name="Phi3ServeEngineStuck",
        expr="sum by (model_name, replica) (ray_phi3_serve_num_requests_running) > 0"
        " and sum by (model_name, replica) (increase(ray_phi3_serve_iteration_tokens_total_count[5m])) == 0",
        lasts="1m",
        severity="critical",
        summary="Replica {{ $labels.replica }} of {{ $labels.model_name }} has requests and runs no step.",
    ),
    Alert(
        name="Phi3ServeReplicasEnd",
        expr="count by (model_name) (count by (model_name, replica)"
        " (max_over_time(ray_phi3_serve_model_load_seconds[1h])))"
        " - max by (model_name) (max_over_time(ray_phi3_serve_num_replicas[1h])) > 3",
        lasts="1m",
        severity="warning",
        summary="{{ $value }} replicas of {{ $labels.model_name }} have ended within an hour.",
    ),
    Alert(
        name="Phi3ServeRefusals",
        expr="(sum(rate(ray_phi3_serve_refusals_total"
        '{refused_by!="key"}[5m]))'
        ' + (sum(rate(ray_serve_num_deployment_http_error_requests_total{deployment="haproxy",error_code="429"}[5m]))'
        " or vector(0)))"
        " / (sum(rate(ray_phi3_serve_requests_total[5m])) > 0) > 0.05",
        lasts="10m",
        severity="warning",
        summary="The server refuses many requests: {{ $value | humanizePercentage }} of those it takes.",
    ),
    Alert(
        name="Phi3ServeQueueIsSlow",
        expr="histogram_quantile(0.9, sum by (model_name, le)"
        " (rate(ray_phi3_serve_request_queue_time_seconds_bucket[5m]))) > 5",
        lasts="10m",
        severity="warning",
        summary="A tenth of the requests to {{ $labels.model_name }} wait {{ $value | humanizeDuration }} or longer.",
    ),
    Alert(
        name="Phi3ServeFirstTokenIsSlow",
        expr="histogram_quantile(0.99, sum by (model_name, le)"
        " (rate(ray_phi3_serve_time_to_first_token_seconds_bucket[5m]))) > 10",
        lasts="10m",
        severity="warning",
        summary="The 99th percentile of the time to the first token of {{ $labels.model_name }} is"
        " {{ $value | humanizeDuration }}.",
    ),
    Alert(
        name="Phi3ServeCacheIsFull",
        expr="sum by (model_name) (rate(ray_phi3_serve_num_preemptions_total[5m])) > 0.1"
        " and max by (model_name) (ray_phi3_serve_kv_cache_usage_perc) > 0.9",
        lasts="10m",
        severity="warning",
        summary="The key-value cache of {{ $labels.model_name }} is full, and requests lose their place.",
    ),
    Alert(
        name="Phi3ServeKernelsReplaced",
        expr="max by (model_name) (ray_phi3_serve_num_kernels_replaced) > 0",
        lasts="5m",
        severity="warning",
        summary="{{ $labels.model_name }} runs {{ $value }} slow kernels.",
    ),
)


def rules_file() -> str:
    """``alerts.yaml``."""
    return yaml.safe_dump({"groups": [rule_group()]}, sort_keys=False, width=120, allow_unicode=True)


def prometheus_rule_file() -> str:
    """``prometheus-rule.yaml``, for the Prometheus operator of Kubernetes."""
    labels = {"app.kubernetes.io/part-of": "phi3-serve", "release": "prometheus"}
    rule = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "phi3-serve", "labels": labels},
        "spec": {"groups": [rule_group()]},
    }
    comment = (
        "# Written by `python -m phi3_serve.monitoring .`. The label release is what your Prometheus selects by.\n"
    )
    return comment + yaml.safe_dump(rule, sort_keys=False, width=120, allow_unicode=True)


def rule_group(alerts: Iterable[Alert] = ALERTS) -> dict[str, Any]:
    """One group of rules, for Prometheus and for a PrometheusRule of Kubernetes."""
    return {"name": "phi3-serve", "rules": [_rule(alert) for alert in alerts]}


def _rule(alert: Alert) -> dict[str, Any]:
    return {
        "alert": alert.name,
        "expr": alert.expr,
        "for": alert.lasts,
        "labels": {"severity": alert.severity},
        "annotations": {"summary": alert.summary, "runbook_url": f"{RUNBOOK}#{alert.name.lower()}"},
    }
