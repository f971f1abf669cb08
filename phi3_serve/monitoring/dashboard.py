"""The dashboard of Grafana as JSON, of schema version 39 (Grafana 10.4 and newer)."""

import json
from typing import Any

from phi3_serve.monitoring.panels import ROWS, Panel

_WIDTH, _HEIGHT, _PER_LINE = 8, 7, 3  # a dashboard is 24 columns wide
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def dashboard_file() -> str:
    """``grafana-dashboard.json``."""
    return json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n"


def dashboard() -> dict[str, Any]:
    """The dashboard."""
    return {
        "uid": "phi3-serve",
        "title": "phi3-serve",
        "schemaVersion": 39,
        "tags": ["phi3-serve", "ray", "llm"],
        "time": {"from": "now-1h", "to": "now"},
        "refresh": "30s",
        "editable": True,
        "templating": {"list": [_source_variable(), _model_variable()]},
        "panels": _panels(),
    }


def _source_variable() -> dict[str, Any]:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _model_variable() -> dict[str, Any]:
    query = "label_values(ray_phi3_serve_model_state, model_name)"
    return {
        "name": "model",
        "label": "Model",
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": query, "refId": "models"},
        "refresh": 2,  # when the time range changes
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def _panels() -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    y = 0
    for title, panels in ROWS.items():
        made.append({"id": len(made) + 1, "type": "row", "title": title, "gridPos": _place(24, 1, 0, y), "panels": []})
        y += 1
        for number, panel in enumerate(panels):
            place = _place(_WIDTH, _HEIGHT, number % _PER_LINE * _WIDTH, y + number // _PER_LINE * _HEIGHT)
            made.append({"id": len(made) + 1, "gridPos": place, **_panel(panel)})
        y += -(-len(panels) // _PER_LINE) * _HEIGHT
    return made


def _place(width: int, height: int, x: int, y: int) -> dict[str, int]:
    return {"w": width, "h": height, "x": x, "y": y}


def _panel(panel: Panel) -> dict[str, Any]:
    is_table = panel.kind == "table"
    how = {"format": "table", "instant": True} if is_table else {"range": True}
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.meaning,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {} if is_table else {"legend": {"displayMode": "list"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + n), "expr": query.expr, "legendFormat": query.legend, "datasource": _SOURCE, **how}
            for n, query in enumerate(panel.queries)
        ],
    }
