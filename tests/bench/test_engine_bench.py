"""The benchmark end to end on a model of two layers: competitors in real processes, table and JSON."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from typer.testing import CliRunner

from phi3_serve.bench import peer_packages
from phi3_serve.bench.gguf_file import bytes_of_step, write_random
from phi3_serve.bench.roofline import Machine, linear_sizes, roofline_seconds, weight_bytes
from phi3_serve.bench.shapes import SHAPES, config
from phi3_serve.bench.worker_process import WorkerProcess
from phi3_serve.cli import app
from phi3_serve.engine.engine_core import StepStats
from phi3_serve.errors import EngineFailure

RUN = CliRunner()
QUICK = ["--shape", "probe", "--prompt-tokens", "8", "--new-tokens", "3", "--rounds", "1", "--threads", "1"]


@pytest.mark.slow
def test_ours_and_the_peers_are_measured_in_one_run() -> None:
    given = [
        "--concurrency",
        "1,3",
        "--workload",
        "plain,beams,exotic,structured",
        "--peers",
        "generate,batching",
        "--json",
    ]
    result = RUN.invoke(app, ["bench", "engine", *QUICK, *given])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    found = {(line["name"].split(",")[0], line["workload"], line["concurrency"]) for line in report["lines"]}
    everywhere = [("phi3-serve", kind) for kind in ("plain", "beams", "exotic", "structured")]
    peers = [("generate", "plain"), ("generate", "beams"), ("transformers batching", "plain")]
    assert found == {(*who, at_once) for who in (*everywhere, *peers) for at_once in (1, 3)}
    for line in report["lines"]:
        assert line["tokens_per_s"] > 0
        if line["name"] == "phi3-serve":
            assert line["of_roofline"] > 0
            assert 0 < line["of_linear_layers"] < 1.5  # a step of microseconds is not measured to the percent
    assert report["machine"]["bytes_per_s"] > 1e8
    assert report["machine"]["threads"] == 1


@pytest.mark.slow
def test_adapters_are_measured_beside_plain_requests() -> None:
    given = ["--concurrency", "4", "--adapters", "3", "--rank", "2", "--json"]
    result = RUN.invoke(app, ["bench", "engine", *QUICK, *given])
    assert result.exit_code == 0, result.output
    lines = json.loads(result.stdout)["lines"]
    assert [line["workload"] for line in lines] == ["plain", "adapters", "half adapters"]
    assert all(line["tokens_per_s"] > 0 and line["decode_tokens_per_s"] > 0 for line in lines)


@pytest.mark.slow
def test_rounded_weights_are_measured_beside_others() -> None:
    given = ["--peers", "none", "--concurrency", "2", "--quantization", "none,int8,int4", "--json"]
    result = RUN.invoke(app, ["bench", "engine", *QUICK, *given])
    assert result.exit_code == 0, result.output
    lines = json.loads(result.stdout)["lines"]
    assert [line["name"] for line in lines] == ["phi3-serve", "phi3-serve, int8", "phi3-serve, int4"]
    assert all(line["of_linear_layers"] > 0 and line["of_roofline"] > 0 for line in lines)


@pytest.mark.slow
def test_caches_in_8_bits_are_measured_beside_others() -> None:
    given = ["--concurrency", "2", "--quantization", "none,int8", "--kv-cache-dtype", "auto,int8", "--json"]
    result = RUN.invoke(app, ["bench", "engine", *QUICK, *given])
    assert result.exit_code == 0, result.output
    lines = json.loads(result.stdout)["lines"]
    names = ["phi3-serve", "phi3-serve, cache in int8", "phi3-serve, int8", "phi3-serve, int8, cache in int8"]
    assert [line["name"] for line in lines] == names
    assert all(line["tokens_per_s"] > 0 and line["of_roofline"] > 0 for line in lines)


@pytest.mark.slow
def test_llama_cpp_has_a_line_beside_each_of_ours() -> None:
    if (problem := peer_packages.missing("llamacpp")) is not None:
        pytest.skip(problem)
    given = ["--peers", "llamacpp", "--concurrency", "3", "--quantization", "int8,int4", "--json"]
    result = RUN.invoke(app, ["bench", "engine", *QUICK, *given])
    assert result.exit_code == 0, result.output
    lines = {line["name"]: line for line in json.loads(result.stdout)["lines"]}
    assert list(lines) == ["phi3-serve, int8", "phi3-serve, int4", "llama.cpp, Q8_0", "llama.cpp, Q4_K_M"]
    for line in lines.values():
        assert line["prompt_tokens_per_s"] > 0
        assert line["decode_tokens_per_s"] > 0
        assert line["resident_mib"] > 10
        assert 0 < line["of_bandwidth"] < 1.5


def test_a_file_for_llama_cpp_has_the_tensors_of_phi_3(tmp_path: Path) -> None:
    write_random(tmp_path / "probe.gguf", config("probe"))
    reader = gguf.GGUFReader(tmp_path / "probe.gguf")
    shapes = {tensor.name: tuple(reversed(tensor.shape.tolist())) for tensor in reader.tensors}
    assert len(shapes) == 2 * 6 + 3
    assert shapes["blk.1.attn_qkv.weight"] == (192, 64)
    assert shapes["blk.1.ffn_up.weight"] == (256, 64)
    assert shapes["blk.1.ffn_down.weight"] == (64, 128)
    assert shapes["output.weight"] == (32_064, 64)
    norms = 5 * 64 * 4
    assert bytes_of_step(tmp_path / "probe.gguf") == weight_bytes(config("probe"), torch.float16, "none") + norms


@pytest.mark.slow
def test_the_table_says_what_was_measured() -> None:
    result = RUN.invoke(app, ["bench", "engine", *QUICK, "--concurrency", "2"])
    assert result.exit_code == 0, result.output
    assert "probe, bfloat16 weights computed in" in result.stdout
    assert "phi3-serve" in result.stdout
    assert "1 threads" in result.stdout


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--shape", "huge"], "'huge' is not one of small, mini, medium"),
        (["--shape", "mini:0"], "'mini:0' is not one of small, mini, medium, probe, and not one of them with :LAYERS."),
        (["--peers", "llama"], "'llama' is not one of generate, batching, vllm, llamacpp."),
        (["--peers", "llamacpp", "--device", "cuda"], "llamacpp is measured on a CPU only."),
        (["--quantization", "int8,int3"], "'int3' is not one of none, int8, int4, fp8."),
        (["--quantization", "int8,fp8"], "fp8 is measured on a GPU only."),
        (["--kv-cache-dtype", "auto,int4"], "'int4' is not one of auto, int8, fp8."),
        (["--kv-cache-dtype", "fp8"], "kv_cache_dtype is fp8, which a CPU does not have; allowed are auto and int8."),
        (["--workload", "plain,odd"], "'odd' is not one of plain, sampled, beams, exotic, structured."),
        (["--concurrency", "1,x"], "expected comma-separated positive integers, got '1,x'."),
        (["--concurrency", "0"], "expected comma-separated positive integers, got '0'."),
    ],
)
def test_bad_options_are_named(given: list[str], message: str) -> None:
    result = RUN.invoke(app, ["bench", "engine", *given], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())


@pytest.mark.parametrize(("peer", "module"), [("llamacpp", "llama_cpp"), ("vllm", "vllm")])
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import a_dependency", "ModuleNotFoundError: No module named 'a_dependency'"),
        ("import os; os._exit(3)", "exit code 3"),
    ],
)
def test_a_peer_that_cannot_be_imported_is_told_before_the_first_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, peer: str, module: str, code: str, reason: str
) -> None:
    (tmp_path / f"{module}.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("phi3_serve.bench.engine.run", pytest.fail)
    package = {"llamacpp": "llama-cpp-python", "vllm": "vllm"}[peer]
    result = RUN.invoke(app, ["bench", "engine", "--peers", f"generate,{peer}"], env={"COLUMNS": "300"})
    assert result.exit_code == 2
    assert (
        f"{peer} needs the package {package}, which cannot be imported ({reason}); "
        f"`pip install {package}` installs it and what it depends on."
    ) in " ".join(result.output.replace("│", " ").split())


def test_the_roofline_by_hand() -> None:
    """One layer of hidden size 4: weights (12 + 4 + 16 + 8) * 4 and a vocabulary of 10 * 4."""
    tiny: Any = type(
        "Config",
        (),
        {
            "hidden_size": 4,
            "intermediate_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "vocab_size": 10,
        },
    )
    weights = 12 * 4 + 4 * 4 + 16 * 4 + 4 * 8 + 10 * 4
    assert sum(a * b for a, b in linear_sizes(tiny)) == weights
    step = StepStats(num_tokens=3, num_keys=50, num_ready=1, seconds=1.0)
    slow_memory = Machine(bytes_per_s=10.0, flops_per_s=1e12, threads=1)
    assert roofline_seconds([step], tiny, slow_memory, torch.float32) == (weights * 4 + 50 * 2 * 4 * 4) / 10
    in_int8 = roofline_seconds([step], tiny, slow_memory, torch.float32, kv_cache_dtype="int8")
    assert in_int8 == (weights * 4 + 50 * 2 * 2 * (2 * 1 + 4)) / 10  # two heads of two numbers, each with its scale
    slow_core = Machine(bytes_per_s=1e12, flops_per_s=10.0, threads=1)
    assert roofline_seconds([step], tiny, slow_core, torch.float32) == (2 * weights * 3 + 4 * 4 * 50) / 10


def test_the_weights_of_mini_in_bytes() -> None:
    """3.72 billion are read in a step: 16, 8 or 4.5 bits each, and the head always 8 or more."""
    in_gb = {q: weight_bytes(config("mini"), torch.bfloat16, q) / 1e9 for q in ("none", "int8", "int4", "fp8")}
    assert in_gb == pytest.approx({"none": 7.445, "int8": 3.726, "int4": 2.137, "fp8": 3.726}, rel=1e-3)


def test_the_shapes_are_those_of_the_models() -> None:
    billions = {
        shape: (sum(a * b for a, b in linear_sizes(config(shape))) + 32_064 * SHAPES[shape].hidden_size) / 1e9
        for shape in ("small", "mini", "medium")
    }
    assert billions == pytest.approx({"small": 0.271, "mini": 3.82, "medium": 13.96}, rel=0.01)


def fail() -> None:
    raise ValueError("not like this")


class Counter:
    def __init__(self) -> None:
        self.number = 0

    def add(self, number: int) -> int:
        self.number += number
        return self.number

    def die(self) -> None:
        import os

        os._exit(3)


@pytest.fixture
def counter() -> Iterator[WorkerProcess]:
    apart = WorkerProcess(Counter, num_threads=1)
    yield apart
    apart.close()


@pytest.mark.thorough
def test_an_object_in_a_process_of_its_own(counter: WorkerProcess) -> None:
    assert counter.call("add", 2) == 2
    assert counter.call("add", 3) == 5
    with pytest.raises(EngineFailure, match="ended with exit code 3"):
        counter.call("die")


@pytest.mark.thorough
def test_what_fails_there_is_told_here() -> None:
    with pytest.raises(EngineFailure, match="ValueError: not like this"):
        WorkerProcess(fail, num_threads=1)
