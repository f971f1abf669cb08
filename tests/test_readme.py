"""The README says what is there. Its curl commands run in serving/test_cluster.py."""

import re
from pathlib import Path

from phi3_serve.config import (
    AppConfig,
    ClusterConfig,
    HealthConfig,
    HttpConfig,
    LimitsConfig,
    ModelConfig,
    RolloutConfig,
    ScalingConfig,
)

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text()


def test_it_is_short_enough_to_be_read() -> None:
    assert len(README.splitlines()) <= 150


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
    ):
        for key in section.model_fields:
            assert re.search(rf"\b{key}\b", CONFIGURATION), key


def test_described_defaults_are_the_codes() -> None:
    for section in ("limits", "cluster", "http", "auth"):
        for key, default in getattr(AppConfig(), section):
            rows = [
                line
                for line in CONFIGURATION.splitlines()
                if line.startswith("|") and f"`{section}.{key}`" in line.split("|")[1]
            ]
            assert len(rows) == 1, key
            shown = "none" if default == () else str(default).lower()
            if isinstance(default, float):
                shown = f"{default:g}"
            assert shown in rows[0].split("|")[2], (key, rows[0])


def test_its_file_tree_is_the_real_one() -> None:
    tree = README.split("## What is where")[1].split("```")[1]
    named = {path.strip() for line in tree.strip().splitlines() for path in line.split("  ")[0].split(",")}
    for path in named:
        assert (ROOT / path).exists(), path
    package = {
        f"phi3_serve/{p.name}{'/' if p.is_dir() else ''}"
        for p in (ROOT / "phi3_serve").iterdir()
        if p.name not in ("__pycache__", "__init__.py", "__main__.py", "py.typed")
    }
    assert package <= named
