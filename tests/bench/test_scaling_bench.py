"""The day in virtual time: its requests, its replicas, Ray's decisions, and the command that compares policies."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from ray.serve import autoscaling_policy as ray_policy
from ray.serve.config import AutoscalingConfig, AutoscalingContext
from typer.testing import CliRunner

from phi3_serve.bench.arrivals import Arrivals, recorded, synthetic_day
from phi3_serve.bench.gpus import gpu
from phi3_serve.bench.scaling import ours_config
from phi3_serve.bench.simulated_controller import SimulatedController
from phi3_serve.bench.simulated_day import Day, Nodes, SimulatedDay
from phi3_serve.bench.simulated_replica import CHUNK, Request, SimulatedReplica, Speed
from phi3_serve.catalogue import variant
from phi3_serve.cli import app
from phi3_serve.core.engine_info import Load

RUN = CliRunner()
SPEED = Speed(weights_s=0.01, cached_token_s=1e-6, prompt_token_s=1e-4, cache_tokens=10_000, max_waiting=4)
MINI = variant("phi-3-mini-128k-instruct")


def request(arrived: float, prompt: int = 1000, answer: int = 100) -> Request:
    return Request(arrived, prompt, answer, prompt + answer / 2)


def test_a_lone_request_takes_what_the_roofline_says() -> None:
    waits: list[float] = []
    replica = SimulatedReplica(SPEED, 0, waits)
    replica.add(request(0))
    replica.advance(10)
    of_chunk = 0.01 + 1e-4 * CHUNK
    assert waits == [pytest.approx(of_chunk * 1000 / CHUNK)]
    assert replica.num_requests == 0
    slow = SimulatedReplica(SPEED, 0, [])
    slow.add(request(0))
    ends = waits[0] + 99 * (0.01 + 1e-6 * 1050)
    slow.advance(ends - 0.001)
    assert slow.num_requests == 1
    slow.advance(ends + 0.001)
    assert slow.num_requests == 0


def first_tokens_by_small_steps(requests: list[Request]) -> list[float]:
    """The same replica without any cleverness: a quarter of a millisecond at a time."""
    now, step, waiting = 0.0, 0.00025, list(requests)
    prefilling: list[Request] = []
    decoding: list[list[float]] = []
    waits = []
    held = 0.0
    while waiting or prefilling or decoding:
        while waiting and waiting[0].arrived <= now and (not held or held + waiting[0].cached_tokens <= 10_000):
            held += waiting[0].cached_tokens
            prefilling.append(waiting.pop(0))
        seconds = 0.01 + 1e-6 * sum(tokens for _, tokens in decoding)
        if prefilling:
            seconds += 1e-4 * CHUNK
            prefilling[0].prompt_tokens -= step / seconds * CHUNK
        for row in decoding:
            row[0] -= step / seconds
        now += step
        if prefilling and prefilling[0].prompt_tokens <= 0:
            begun = prefilling.pop(0)
            waits.append(now - begun.arrived)
            decoding.append([begun.answer_tokens - 1, begun.cached_tokens])
        held -= sum(tokens for left, tokens in decoding if left <= 0)
        decoding = [row for row in decoding if row[0] > 0]
    return waits


def test_jumping_from_event_to_event_is_the_same_as_small_steps() -> None:
    random = np.random.default_rng(3)
    drawn = [
        (float(second), int(prompt), int(answer))
        for second, prompt, answer in zip(
            np.sort(random.uniform(0, 8, 40)), random.integers(1, 3000, 40), random.integers(1, 300, 40), strict=True
        )
    ]
    speed = Speed(weights_s=0.01, cached_token_s=1e-6, prompt_token_s=1e-4, cache_tokens=10_000, max_waiting=99)
    waits: list[float] = []
    replica = SimulatedReplica(speed, 0, waits)
    for one in drawn:
        replica.advance(one[0])
        assert replica.add(request(*one))
    replica.advance(1000)
    assert waits == pytest.approx(first_tokens_by_small_steps([request(*one) for one in drawn]), abs=0.05)
    assert max(waits) > 1  # some waited for the cache


def test_what_the_cache_cannot_hold_waits_and_a_full_queue_refuses() -> None:
    replica = SimulatedReplica(SPEED, 0, [])
    taken = [replica.add(request(0)) for _ in range(20)]
    assert taken == [True] * 13 + [False] * 7  # nine of 1,050 tokens run, four wait
    assert replica.load == Load(9, 4, 10_000, 9450)


def test_a_speed_is_that_of_the_gpu() -> None:
    assert MINI is not None
    speed = Speed.of(gpu("A100 80 GB"), MINI)
    assert speed.cache_tokens == 172_825  # as docs/sizing.md has it
    assert speed.weights_s == pytest.approx(2 * MINI.num_parameters / (0.65 * 2039e9))
    medium = variant("phi-3-medium-4k-instruct")
    assert medium is not None
    with pytest.raises(ValueError, match="does not fit on L4"):
        Speed.of(gpu("L4"), medium)


@pytest.mark.parametrize(
    "config",
    [
        ours_config(0, 6),
        AutoscalingConfig(min_replicas=1, max_replicas=6, target_ongoing_requests=200, downscale_delay_s=60),
    ],
)
def test_decisions_are_those_of_ray(config: AutoscalingConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own wrapper, with its clock replaced, on the contexts of 4,000 seconds of random load."""
    clock = 0.0
    monkeypatch.setattr("ray.serve.autoscaling_policy.time.time", lambda: clock)
    wrapped = ray_policy._apply_autoscaling_config(config.policy.get_policy())
    random = np.random.default_rng(0)
    state: dict[str, Any] = {}
    targets = set()

    class Both(SimulatedController):
        """Compares each decision."""

        def _wanted(self, context: AutoscalingContext, now: float) -> int:
            nonlocal state, clock
            clock, context.policy_state = now, state
            theirs, state = wrapped(context)
            context.policy_state = self._state
            ours = super()._wanted(context, now)
            assert ours == theirs, now
            return ours

    controller, running, load = Both(config), 0, 0.0
    for second in range(4000):
        load = max(0.0, load + random.normal(0, 20)) if second % 2000 < 900 else 0.0
        share = load / max(1, running)
        each = Load(int(share), int(share / 4), 1000, min(1000, int(4 * share)))
        controller.observe(second, dict.fromkeys(range(running), each))
        target = controller.decide(second, range(running), int(running == 0 and load > 0))
        running += (target > running) - (target < running) if second % 30 == 0 else 0
        targets.add(target)
    assert len(targets) > 2


def day(arrivals: Arrivals, config: AutoscalingConfig, nodes: Nodes | None = None) -> Day:
    return SimulatedDay(arrivals, SPEED, SimulatedController(config), nodes or Nodes()).run()


def half_an_hour(num_requests: int) -> Arrivals:
    random = np.random.default_rng(1)
    prompts, answers = (random.integers(1, most, num_requests) for most in (2000, 300))
    return Arrivals(np.sort(random.uniform(0, 1800, num_requests)), prompts, answers)


def test_every_request_is_answered_refused_or_told_to_come_later() -> None:
    for config in (ours_config(0, 3), ours_config(1, 3), AutoscalingConfig(min_replicas=1, max_replicas=1)):
        found = day(half_an_hour(9000), config)
        assert len(found.waits) + found.num_refused + found.num_asleep == 9000
        assert found.num_refused > 0  # one replica is not enough
        assert found.node_seconds >= found.replica_seconds > 0


def test_a_sleeping_model_wakes_after_the_node_and_the_weights() -> None:
    seconds = np.array([100.0, 350.0, 450.0])
    found = day(Arrivals(seconds, np.full(3, 100), np.full(3, 10)), ours_config(0, 2))
    assert (found.num_asleep, len(found.waits)) == (2, 1)  # 240 and 60 seconds after the first
    kept = day(Arrivals(seconds, np.full(3, 100), np.full(3, 10)), ours_config(0, 2), Nodes(num_kept=1))
    assert (kept.num_asleep, len(kept.waits)) == (1, 2)


def test_an_idle_model_sleeps_and_its_node_ends_later() -> None:
    seconds = np.array([0.5, 5000.0])
    found = day(Arrivals(seconds, np.full(2, 100), np.full(2, 10)), ours_config(0, 2), Nodes(load_s=0, start_s=0))
    assert found.replicas[1] == 1
    assert found.replicas[3] == 0  # after 600 idle seconds
    assert 300 <= found.node_seconds - found.replica_seconds <= 610  # idle for 300 seconds, once or twice


def test_a_synthetic_day_is_the_same_each_time_and_has_a_night() -> None:
    one, two = synthetic_day(50_000, 7), synthetic_day(50_000, 7)
    assert len(one.seconds) == 50_000
    assert np.array_equal(one.seconds, two.seconds)
    assert np.array_equal(one.answer_tokens, two.answer_tokens)
    assert not np.array_equal(one.seconds, synthetic_day(50_000, 8).seconds)
    hours = np.bincount((one.seconds // 3600).astype(int), minlength=24)
    assert hours[2:5].tolist() == [0, 0, 0]
    assert hours[10:18].min() > 3 * hours[23]
    assert np.median(one.prompt_tokens) == pytest.approx(1020, rel=0.05)
    assert np.median(one.answer_tokens) == pytest.approx(129, rel=0.05)


def test_a_trace_of_azure_is_read(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    rows = ("2023-11-16 18:15:46.6805900,374,44", "2023-11-16 18:15:50.9951690,396,0", "2023-11-16 18:15:48+00:00,3,9")
    file.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]))
    found = recorded(file)
    assert found.seconds.tolist() == pytest.approx([0, 1.31941, 4.314579])
    assert found.prompt_tokens.tolist() == [374, 3, 396]
    assert found.answer_tokens.tolist() == [44, 9, 1]
    file.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="must have rows with TIMESTAMP"):
        recorded(file)


@pytest.mark.thorough
def test_the_command_compares_policies_and_draws_them(tmp_path: Path) -> None:
    arrivals = half_an_hour(5000)
    rows = zip(arrivals.seconds, arrivals.prompt_tokens, arrivals.answer_tokens, strict=True)
    lines = [f"2026-12-01 00:{int(at // 60):02}:{at % 60:09.6f},{prompt},{answer}" for at, prompt, answer in rows]
    (tmp_path / "trace.csv").write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *lines]))
    given = ["bench", "scaling", "--arrivals", str(tmp_path / "trace.csv"), "--max-replicas", "2", "--gpu", "A10"]
    result = RUN.invoke(app, [*given, "--json", "--svg", str(tmp_path / "x.svg")])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    found = {line["policy"]: line for line in report["lines"]}
    assert len(found) == 7
    assert found["2 replicas, fixed"]["replica_hours"] == pytest.approx(1, rel=0.05)
    assert found["1 replica, fixed"]["refused"] > found["2 replicas, fixed"]["refused"]
    assert found["phi3-serve, from zero"]["asleep"] > 0 == found["phi3-serve"]["asleep"]
    assert found["phi3-serve, nodes kept"]["gpu_hours"] == pytest.approx(1, rel=0.05)
    assert sum(report["requests_per_s"]) * report["interval_s"] == pytest.approx(5000)
    drawn = ElementTree.parse(tmp_path / "x.svg")
    assert len(list(drawn.iter("{http://www.w3.org/2000/svg}path"))) == 7 * 3
    assert "phi3-serve, from zero" in RUN.invoke(app, given).stdout


def test_what_does_not_fit_is_refused() -> None:
    refused = RUN.invoke(app, ["bench", "scaling", "--gpu", "L4", "--model", "phi-3-medium-4k-instruct"])
    assert refused.exit_code == 2
    assert "does not fit on L4" in refused.stderr
    assert "no variant" in RUN.invoke(app, ["bench", "scaling", "--model", "x"]).stderr
