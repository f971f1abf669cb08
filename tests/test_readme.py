"""docs/configuration.md describes every config key. The curl commands of the README run in serving/test_cluster.py."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi import FastAPI

from phi3_serve.config.app import AppConfig, ClusterConfig
from phi3_serve.config.batches import BatchesConfig
from phi3_serve.config.http import HttpConfig
from phi3_serve.config.limits import LimitsConfig
from phi3_serve.config.model import ModelConfig
from phi3_serve.config.replicas import HealthConfig, RolloutConfig, ScalingConfig

ROOT = Path(__file__).parents[1]
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text()


# One question of each command, without a terminal.
ASKED = re.findall(r"^(?:echo .*)?\.venv/bin/phi3-serve (?:chat|compare) \".*$", (ROOT / "README.md").read_text(), re.M)


@pytest.mark.thorough
@pytest.mark.parametrize("command", ASKED, ids=range(len(ASKED)))
def test_the_commands_that_ask_get_an_answer(
    command: str, make_tiny_app: Callable[[], FastAPI], serve_app: Callable[[FastAPI], str]
) -> None:
    here = command.replace(".venv/bin/phi3-serve", f"{sys.executable} -m phi3_serve")
    environment = {**os.environ, "PHI3_SERVE_URL": serve_app(make_tiny_app())}
    done = subprocess.run(
        ["bash", "-c", here], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, env=environment
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()


def test_the_readme_asks_with_three_commands() -> None:
    assert len(ASKED) == 3


def test_every_config_key_is_described() -> None:
    for section in (
        AppConfig,
        ModelConfig,
        ScalingConfig,
        HealthConfig,
        RolloutConfig,
        LimitsConfig,
        ClusterConfig,
        HttpConfig,
        BatchesConfig,
    ):
        for key in section.model_fields:
            assert re.search(rf"\b{key}\b", CONFIGURATION), key


def test_described_defaults_are_the_codes() -> None:
    for section in ("limits", "cluster", "http", "auth", "batches"):
        for key, default in getattr(AppConfig(), section):
            rows = [
                line
                for line in CONFIGURATION.splitlines()
                if line.startswith("|") and f"`{section}.{key}`" in line.split("|")[1]
            ]
            assert len(rows) == 1, key
            shown = "none" if default in ((), {}) else str(default).lower()
            if isinstance(default, float):
                shown = f"{default:g}"
            assert shown in rows[0].split("|")[2], (key, rows[0])
