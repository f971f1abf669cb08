"""``phi3-serve models`` judges as the server places and loads."""

import json
import sys
from typing import Any

import pytest
from typer.testing import CliRunner

from phi3_serve import catalogue
from phi3_serve.cli import app
from phi3_serve.engine.source import open_source
from phi3_serve.terminal import catalogue_table
from phi3_serve.terminal.catalogue_table import Gpu, Machine, fit
from tests.terminal.screen import Screen

RUN = CliRunner()
GB = 10**9


def variant(name: str) -> catalogue.Variant:
    found = catalogue.variant(name)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("name", "machine", "settings", "words"),
    [
        ("phi-3-tiny", Machine(GB, None), {}, "yes"),
        ("phi-3-tiny", Machine(10**6, None), None, "no"),
        ("phi-3-tiny", Machine(GB, Gpu(0, (8, 0))), {}, "yes"),  # it runs on the CPU beside a GPU
        ("phi-3-mini-4k", Machine(21 * GB, None), {"device": "cpu"}, "with device: cpu"),
        ("phi-3-mini-4k", Machine(12 * GB, None), {"device": "cpu"}, "with device: cpu"),
        ("phi-3-mini-4k", Machine(12 * GB, None, keeps_halves=False), {"device": "cpu", "quantization": "int8"}, "with device: cpu, quantization: int8"),
        ("phi-3-mini-4k", Machine(8 * GB, None), {"device": "cpu", "quantization": "int8"}, "with device: cpu, quantization: int8"),
        ("phi-3-mini-4k", Machine(6 * GB, None), {"device": "cpu", "quantization": "int4"}, "with device: cpu, quantization: int4"),
        ("phi-3-mini-4k", Machine(5 * GB, None), None, "no"),
        ("phi-3-mini-4k", Machine(5 * GB, Gpu(16 * GB, (8, 0))), {}, "yes"),
        ("phi-3-mini-4k", Machine(5 * GB, Gpu(16 * GB, (7, 5))), {}, "yes"),
        ("phi-3-mini-4k", Machine(5 * GB, Gpu(6 * GB, (8, 0))), {"quantization": "int8"}, "with quantization: int8"),
        ("phi-3-mini-4k", Machine(5 * GB, Gpu(5 * GB, (8, 0))), {"quantization": "int4"}, "with quantization: int4"),
        ("phi-3-mini-4k", Machine(21 * GB, Gpu(4 * GB, (8, 0))), {"device": "cpu"}, "with device: cpu"),
        ("phi-3-mini-4k", Machine(5 * GB, Gpu(4 * GB, (8, 0))), None, "no"),
    ],
)  # fmt: skip
def test_what_fits_and_with_which_settings(name: str, machine: Machine, settings: Any, words: str) -> None:
    found = fit(variant(name), machine)
    assert (found.settings, found.in_words) == (settings, words)


def test_the_dtype_is_that_which_the_server_would_load() -> None:
    mini = variant("phi-3-mini-4k")
    assert fit(mini, Machine(GB, Gpu(16 * GB, (8, 0)))).dtype == "bfloat16"
    assert fit(mini, Machine(GB, Gpu(16 * GB, (7, 5)))).dtype == "float16"
    assert fit(mini, Machine(100 * GB, None)).dtype == "float32"


def test_json_has_every_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue_table, "this_machine", lambda: Machine(8 * GB, None))
    document = json.loads(RUN.invoke(app, ["models", "--json"]).output)
    assert (document["memory_bytes"], document["gpu_memory_bytes"]) == (8 * GB, None)
    rows = {row["name"]: row for row in document["models"]}
    assert list(rows) == [v.name for v in catalogue.VARIANTS]
    assert (rows["phi-3-tiny"]["fits"], rows["phi-3-tiny"]["fits_with"]) == (True, {})
    mini = rows["phi-3-mini-4k-instruct"]
    assert (mini["fits"], mini["fits_with"]) == (False, {"device": "cpu", "quantization": "int8"})
    assert mini["memory_needed_bytes"] <= 8 * GB
    assert (mini["kv_bytes_per_token"], mini["kv_bytes_per_token_in_int8"]) == (786_432, 204_800)
    assert {row["weight_format"] for row in rows.values()} == {"safetensors: BF16"}


def test_the_embedded_model_is_stored_as_the_catalogue_says() -> None:
    assert open_source(catalogue.EMBEDDED_TINY, None).weight_format == catalogue.STORED_AS


@pytest.mark.thorough
@pytest.mark.parametrize("columns", [40])
def test_no_name_is_cut_in_a_narrow_terminal(columns: int, tmp_path: Any) -> None:
    screen = Screen([sys.executable, "-m", "phi3_serve", "models"], tmp_path, columns=columns)
    assert screen.wait_for_end() == 0
    assert all(f" {v.name} " in screen.text for v in catalogue.VARIANTS)
    assert "…" not in screen.text
    screen.close()


def test_a_pipe_gets_one_line_for_each_variant() -> None:
    lines = RUN.invoke(app, ["models"], env={"COLUMNS": "20"}).output.splitlines()
    for v in catalogue.VARIANTS:
        (line,) = (line for line in lines if f" {v.name} " in line)
        assert f"{v.context_length:,}" in line
        assert (v.revision or "embedded")[:7] in line
