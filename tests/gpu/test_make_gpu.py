"""``make gpu`` without a GPU: its parts in their order, those that fail or hang, and what the report then has."""

import importlib
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from phi3_serve.engine.kernels import prompt_attention
from phi3_serve.engine.kernels.cuda import ChunkSize
from phi3_serve.engine.kernels.reference import ReferenceKernels
from tests.engine.kernels.emulated_flash import emulated_flash_attention
from tests.engine.kernels.interpreter import mended_interpreter
from tests.engine.model.replayer import runner_on_cpu
from tests.engine.model.test_device_steps import GatheringKernels
from tests.gpu import __main__ as make_gpu
from tests.gpu import checks, chunks, prompts, trouble
from tests.gpu.__main__ import CUT, NOT_RUN, PARTS, PASSED, Part, run_parts
from tests.random_checkpoint import Shape

PROBES = "tests.gpu.probes"


def report_of(folder: Path, *parts: tuple[str, str, float], budget_s: float = 900.0) -> tuple[int, dict[str, Any]]:
    """The exit code and the report of functions of ``probes``, each with its limit in seconds."""
    chosen = [(name, Part(f"{PROBES}:{function}", (name,), limit_s)) for name, function, limit_s in parts]
    code = run_parts(chosen, folder, command="make gpu", budget_s=budget_s)
    assert sorted(path.name for path in folder.glob("*.json")) == ["report.json"]
    return code, json.loads((folder / "report.json").read_text())["parts"]


def is_running(pid: int) -> bool:
    """Whether the process has not ended. One that nobody waits for stays as a zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
def test_a_part_that_fails_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    code, parts = report_of(
        tmp_path,
        ("one", "passes", 200),
        ("raises", "raises", 200),
        ("dies", "dies", 200),
        ("two", "passes", 200),  # so that the worker of the next part runs already
        ("hangs", "hangs_with_a_child", 20),
        ("three", "passes", 200),
        ("four", "passes", 200),
    )
    assert code == 1
    assert {name: part["verdict"] for name, part in parts.items()} == {
        "one": PASSED,
        "raises": "failed (1)",
        "dies": "failed (-11)",
        "two": PASSED,
        "hangs": "stopped after 20 s",
        "three": PASSED,
        "four": PASSED,
    }
    assert any("ValueError: wrong by 3" in line for line in parts["raises"]["last_lines"])
    assert parts["raises"]["figures"] == {"so far": 1}
    assert any("hangs_with_a_child" in line for line in parts["hangs"]["last_lines"])  # where it was
    assert not is_running(parts["hangs"]["figures"]["child"])
    assert parts["one"]["figures"]["allocator"] == "expandable_segments:True"  # as in a replica
    # Parts that pass follow one another in one process.
    assert parts["three"]["figures"]["process"] == parts["four"]["figures"]["process"]
    assert "said by one" in (tmp_path / "log.txt").read_text()
    assert "50" in (tmp_path / "gpu.svg").read_text()


@pytest.mark.slow
def test_a_part_that_the_end_of_the_time_stops_has_not_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make_gpu, "LEAST_S", 1.0)
    code, parts = report_of(tmp_path, ("one", "sleeps", 600), ("two", "passes", 60), budget_s=5)
    assert {name: part["verdict"] for name, part in parts.items()} == {"one": CUT, "two": NOT_RUN}
    assert code == 0
    assert 'make gpu PARTS="one two"' in capsys.readouterr().out


def test_a_part_that_its_own_limit_stops_has_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, parts = report_of(tmp_path, ("one", "sleeps", 0.6))
    assert parts["one"]["verdict"] == "stopped after 1 s"
    assert code == 1
    assert "PARTS" not in capsys.readouterr().out


def test_the_most_telling_parts_have_time_in_one_run() -> None:
    first = ["card", "kernels", "prompts", "chunks", "parity", "mini", "memory", "trouble"]
    assert list(PARTS)[: len(first)] == first
    assert sum(PARTS[name].limit_s for name in first) <= make_gpu.BUDGET_S


def test_unknown_parts_are_refused_before_anything_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert make_gpu.main(["kernels", "kernel"]) == 2
    assert "PARTS has kernel; allowed are card, kernels," in capsys.readouterr().out


def test_the_names_of_parts_are_words_of_a_shell() -> None:
    assert all(name == name.split()[0] for name in PARTS)


@pytest.mark.parametrize("name", PARTS)
def test_the_function_of_each_part_is_there(name: str) -> None:
    module, function = PARTS[name].function.split(":")
    assert callable(getattr(importlib.import_module(f"tests.gpu.{module}"), function))


@pytest.mark.thorough  # in Triton's interpreter
def test_both_attentions_of_prompts_are_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on a GPU, but for the sizes, and with torch's operation emulated."""
    properties = SimpleNamespace(multi_processor_count=4, major=9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(prompt_attention, "TRIAL_ROUNDS", 1)
    with mended_interpreter(), emulated_flash_attention() as calls:
        found = prompts.main(["probe"], [ChunkSize(16, 32)], [ChunkSize(20, 140)], "cpu")
    assert calls[-1] == (16, 32, 2)
    assert {(20, 140, 2), (20, 92, 2)} <= set(calls)  # with the window of 64, blocks from that of 57 on are gathered
    assert found["probe, 16 over 32"]["triton_ms"] > found["probe, 16 over 32"]["torch_ms"] > 0
    assert "probe, 16 tokens over 32 keys: Triton " in capsys.readouterr().out


@pytest.mark.thorough
def test_trouble() -> None:
    """As on a GPU, but for the sizes; steps without memory fail by their number of tokens."""
    shape = replace(trouble.SHAPE, hidden_size=32, intermediate_size=64, num_heads=2, num_kv_heads=1)
    found = trouble.main("cpu", runner_on_cpu, replace(shape, context_length=600, long_context_length=2400))
    assert (found["memory"]["failed"], found["memory"]["differing"]) == (0, 0)
    # by the requests that the first step had
    assert trouble.FITTING_TOKENS / 2 < found["memory"]["tokens of a step in the end"] <= trouble.FITTING_TOKENS
    assert (found["crossing"], found["aborts"]) == (0, 0)
    assert 0.001 < found["log-probabilities in bfloat16"] < trouble.SCORES_BOUND


@pytest.mark.thorough
def test_the_largest_steps_of_an_engine_that_takes_all_memory() -> None:
    """As on a GPU, but for the sizes."""
    found = checks.memory("probe", "cpu", torch.float32)
    assert (found["flash_attention"], found["replaced_kernels"]) == ("", {})
    assert found["token_budget"] == 128
    assert found["cache_tokens"] > 128


@pytest.mark.thorough
def test_whole_prompts_with_torchs_attention() -> None:
    """As on a GPU, but for the sizes, the emulated operation, and the reference in place of Triton's kernels."""
    shape = Shape(hidden_size=64, num_layers=3, num_heads=4, num_kv_heads=2, context_length=512)
    with emulated_flash_attention() as calls:
        found = chunks.main(
            "cpu",
            lambda config, device, is_gathered: GatheringKernels() if is_gathered else ReferenceKernels(),
            shape,
            first=(100, 100, 37),
            prefix=96,
            behind=(40, 25),
            windows=(None, 20, 90),
        )
    assert len(calls) == 3 * 3 * 5  # windows, layers, chunks
    assert {(100, 100), (37, 237), (25, 161)} <= {(queries, keys) for queries, keys, _ in calls}
    assert all(0.005 < of_window["gathered and reference"] < chunks.BOUND for of_window in found.values())
