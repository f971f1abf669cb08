"""The bars and curves of each benchmark, from what it prints with ``--json``. Plain Python."""

import statistics
from collections.abc import Callable
from typing import Any

from phi3_serve.bar_chart import Bar, Curve, Curves, Panel

OURS = "phi3-serve"


def engine(report: Any) -> list[Panel]:
    """``bench engine``: tokens per second, one panel for each workload and concurrency."""
    panels: dict[tuple[str, int], list[Bar]] = {}
    for line in report["lines"]:
        label = line["name"].removesuffix(", bfloat16")
        bar = Bar(label, line["tokens_per_s"], label.split(",")[0] == OURS)
        panels.setdefault((line["workload"], line["concurrency"]), []).append(bar)
    names = {workload for workload, _ in panels}
    return [
        Panel(f"Tokens per second, {_requests(count)}{f', {workload}' if len(names) > 1 else ''}", tuple(bars))
        for (workload, count), bars in panels.items()
    ]


def http(report: Any) -> list[Panel]:
    """``bench http``: time to the first token, then throughput, for each concurrency."""
    panels = []
    for key, title in (("first_token_ms", "First token, milliseconds"), ("all_tokens_per_s", "Tokens per second")):
        for count in sorted({line["concurrency"] for line in report["lines"]}):
            lines = [line for line in report["lines"] if line["concurrency"] == count]
            bars = (Bar(line["endpoint"], line[key], line["endpoint"].startswith("/")) for line in lines)
            panels.append(Panel(f"{title}, {_requests(count)}", tuple(bars)))
    return panels


def overload(report: Any) -> list[Panel]:
    """``bench overload``: how soon 99 % of the refusals came, in each run that has any."""
    bars = tuple(
        Bar(
            f"{line['clients']:,} clients: {line['answered']:,} answered, {line['refused']:,} refused",
            line["p99_refusal_ms"],
        )
        for line in report["lines"]
        if line["p99_refusal_ms"] is not None
    )
    return [Panel("99 % of the refusals arrived within, milliseconds", bars)]


def multi_turn(report: Any) -> list[Panel]:
    """``bench multi-turn``: time to the first token of each turn, over all conversations."""
    times: dict[int, list[float]] = {}
    for turn in report["turns"]:
        times.setdefault(turn["number"], []).append(1000 * turn["first_s"])
    bars = (Bar(f"turn {number + 1}", statistics.median(found)) for number, found in sorted(times.items()))
    return [Panel("First token, milliseconds, by turn", tuple(bars))]


def scaling(report: Any) -> list[Panel | Curves]:
    """``bench scaling``: refused requests, waiting time and GPUs of each policy, then its replicas over the day."""
    lines = report["lines"]
    bars: tuple[tuple[str, Callable[[Any], float]], ...] = (
        (
            "Refused or asleep, % of the requests",
            lambda line: 100 * (line["refused"] + line["asleep"]) / line["requests"],
        ),
        ("First token of 99 %, seconds", lambda line: line["p99_first_token_s"]),
        ("GPU hours, nodes that start or are idle included", lambda line: line["gpu_hours"]),
    )
    panels: list[Panel | Curves] = [
        Panel(title, tuple(Bar(line["policy"], value(line), line["policy"].startswith(OURS)) for line in lines))
        for title, value in bars
    ]
    rate = Curve("requests/s", tuple(report["requests_per_s"]), is_strong=False)
    hours = f"{len(report['requests_per_s']) * report['interval_s'] / 3600:.3g} h"
    for line in lines:
        replicas = Curve("replicas", tuple(line["replicas"][: len(rate.values)]))
        panels.append(Curves(f"Replicas: {line['policy']}", (replicas, rate), hours))
    return panels


def _requests(count: int) -> str:
    return "one request" if count == 1 else f"{count} requests at once"
