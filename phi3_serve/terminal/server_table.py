"""``phi3-serve ps``: what a running server has loaded."""

import json
import sys
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

from phi3_serve.catalogue import FP8, NO_QUANTIZATION
from phi3_serve.client import Client, Refused
from phi3_serve.observability.progress import human_bytes

_RUNNING = "phi3_serve_num_requests_in_flight"
_UNKNOWN = "?"


def print_models(client: Client, *, as_json: bool) -> None:
    """Print every model that the server declares: its state, what it runs on, its memory and its requests.

    Raises:
        Phi3ServeError: the server does not answer.
    """
    models = client.get("/ready", also=HTTPStatus.SERVICE_UNAVAILABLE)["models"]
    requests = _requests(client)
    rows = [{"name": name, **model, "requests": _of(name, requests)} for name, model in models.items()]
    if as_json:
        print(json.dumps({"url": client.url, "models": rows}, indent=2))
        return
    console = Console(highlight=False)
    if not sys.stdout.isatty():
        console.width = 1000  # a pipe has no width
    table = Table(box=None, pad_edge=False)
    table.add_column("Model", no_wrap=True, min_width=max(map(len, models), default=0))
    for heading in ("State", "Requests", "Memory", "Weights", "Stored as", "Cache", "Device"):
        right = heading in ("Requests", "Memory")
        table.add_column(heading, justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*_cells(row))
    console.print(table)
    for row in rows:
        if detail := row.get("detail"):
            console.print(f"{row['name']}: {detail}", markup=False, soft_wrap=True)


def _requests(client: Client) -> Mapping[str, int] | None:
    """Requests that wait or run, by model; None if the API key may not see them.

    They are those of one ingress process.
    """
    try:
        text = client.get_text("/metrics", accept="text/plain")
    except Refused as refused:
        if refused.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            return None
        raise
    return {
        sample.labels["model_name"]: int(sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == _RUNNING
    }


def _of(name: str, requests: Mapping[str, int] | None) -> int | None:
    return None if requests is None else requests.get(name, 0)


def _cells(row: Mapping[str, Any]) -> Iterator[str]:
    yield row["name"]
    yield row["state"].replace("_", " ")
    yield _UNKNOWN if row["requests"] is None else str(row["requests"])
    engine = row.get("engine")
    if engine is not None:
        yield human_bytes(engine["weight_bytes"] + engine["cache_bytes"])
        yield _weights(engine)
        yield engine["weight_format"]
        yield engine["kv_cache_dtype"]
        yield engine["device"]


def _weights(engine: Mapping[str, Any]) -> str:
    """What the weights are rounded to, or their dtype."""
    quantization: str = engine["quantization"]
    if quantization == FP8:
        return f"{FP8}, activations too"
    return engine["weight_dtype"] if quantization == NO_QUANTIZATION else quantization
