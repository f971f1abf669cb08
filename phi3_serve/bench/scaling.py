"""Policies of autoscaling over a day of requests in virtual time: who waits, who is refused, how many GPUs it takes."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy
from rich.table import Table

from phi3_serve.bench import plots
from phi3_serve.bench.arrivals import Arrivals, recorded, synthetic_day
from phi3_serve.bench.gpus import gpu
from phi3_serve.bench.output import Output
from phi3_serve.bench.simulated_controller import SimulatedController
from phi3_serve.bench.simulated_day import SHOWN_EVERY, Day, Nodes, SimulatedDay
from phi3_serve.bench.simulated_replica import Speed
from phi3_serve.catalogue import variant
from phi3_serve.config.replicas import ScalingConfig
from phi3_serve.serving.scaling import default_target_load

LONG_WAIT = 5.0  # seconds to the first token
_OURS = AutoscalingPolicy(policy_function="phi3_serve.serving.scaling:busy_replicas")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line asks for."""

    model: str
    gpu: str
    max_replicas: int
    arrivals: Path | None  # a recorded trace; a synthetic day if None
    num_requests: int  # of the synthetic day
    seed: int
    load_s: float
    node_start_s: float


@dataclass(frozen=True, slots=True)
class Line:
    """What one policy gave."""

    policy: str
    requests: int
    p50_first_token_s: float
    p99_first_token_s: float
    waited_long: int  # LONG_WAIT or more
    refused: int  # 429
    asleep: int  # 503 with the time until the model is ready
    replica_hours: float
    gpu_hours: float  # of nodes: those that start or are idle, too
    most_replicas: int
    replicas: list[int]  # at the end of each interval


def policies(settings: Settings) -> Iterator[tuple[str, AutoscalingConfig, Nodes]]:
    """Each policy with a name, what Ray Serve is told, and the nodes it runs on."""
    most = settings.max_replicas
    nodes = Nodes(settings.load_s, settings.node_start_s)
    waiting = Nodes(settings.load_s, settings.node_start_s, num_kept=most)
    half = max(1, most // 2)
    ours = ours_config(1, most)
    for count in (most, half):
        name = f"{count} replica{'s' if count > 1 else ''}, fixed"
        yield name, AutoscalingConfig(min_replicas=count, max_replicas=count), nodes
    yield "Serve's defaults: 2 requests", AutoscalingConfig(min_replicas=1, max_replicas=most), nodes
    by_rows = ours.model_copy(update={"policy": AutoscalingPolicy()})
    yield f"only requests: {ours.get_target_ongoing_requests():g}", by_rows, nodes
    yield "phi3-serve", ours, nodes
    yield "phi3-serve, nodes kept", ours, waiting
    yield "phi3-serve, from zero", ours_config(0, most), nodes


def ours_config(least: int, most: int) -> AutoscalingConfig:
    """What ``serving.app`` tells Ray Serve about a model on a GPU with default settings."""
    scaling = ScalingConfig()
    return AutoscalingConfig(
        min_replicas=least,
        max_replicas=most,
        target_ongoing_requests=default_target_load("cuda"),
        upscale_delay_s=scaling.upscale_delay_s,
        downscale_delay_s=scaling.downscale_delay_s,
        look_back_period_s=scaling.look_back_s,
        policy=_OURS,
    )


def run(settings: Settings, output: Output) -> None:
    """Simulate the day with each policy and show the results.

    Raises:
        ValueError: the model does not fit on the GPU, or the file has no requests.
    """
    found = variant(settings.model)
    if found is None:
        raise ValueError(f"{settings.model} is no variant of Phi-3.")
    speed = Speed.of(gpu(settings.gpu), found)
    if settings.arrivals is None:
        arrivals = synthetic_day(settings.num_requests, settings.seed)
    else:
        arrivals = recorded(settings.arrivals)
    lines = []
    for name, config, nodes in policies(settings):
        day = SimulatedDay(arrivals, speed, SimulatedController(config), nodes, settings.seed).run()
        lines.append(_line(name, day, len(arrivals.seconds)))
    report = {
        "settings": asdict(settings),
        "interval_s": SHOWN_EVERY,
        "requests_per_s": [count / SHOWN_EVERY for count in arrived(arrivals)],
        "lines": [asdict(line) for line in lines],
    }
    output.show(report, plots.scaling, lambda: _table(lines), width=130)


def arrived(arrivals: Arrivals) -> list[int]:
    """Requests in each interval."""
    counts: list[int] = np.bincount((arrivals.seconds // SHOWN_EVERY).astype(np.int64)).tolist()
    return counts


def _line(name: str, day: Day, num_requests: int) -> Line:
    waits = np.array(day.waits or [0.0])
    return Line(
        policy=name,
        requests=num_requests,
        p50_first_token_s=float(np.percentile(waits, 50)),
        p99_first_token_s=float(np.percentile(waits, 99)),
        waited_long=int((waits >= LONG_WAIT).sum()),
        refused=day.num_refused,
        asleep=day.num_asleep,
        replica_hours=day.replica_seconds / 3600,
        gpu_hours=day.node_seconds / 3600,
        most_replicas=max(day.replicas, default=0),
        replicas=day.replicas,
    )


def _table(lines: list[Line]) -> Table:
    table = Table(title=f"A day of {lines[0].requests:,} requests")
    table.add_column("policy")
    headings = ("p50 first token", "p99", f"{LONG_WAIT:g} s or more", "refused", "asleep", "replica h", "GPU h", "most")
    for heading in headings:
        table.add_column(heading, justify="right")
    for line in lines:
        table.add_row(
            line.policy,
            f"{line.p50_first_token_s:.2f} s",
            f"{line.p99_first_token_s:.1f} s",
            *(f"{100 * count / line.requests:.2f} %" for count in (line.waited_long, line.refused, line.asleep)),
            f"{line.replica_hours:.0f}",
            f"{line.gpu_hours:.0f}",
            str(line.most_replicas),
        )
    return table
