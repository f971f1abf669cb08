"""docs/configuration.md describes every config key. The curl commands of the README run in serving/test_cluster.py."""

import re
from pathlib import Path

from phi3_serve.config import (
    AppConfig,
    BatchesConfig,
    ClusterConfig,
    HealthConfig,
    HttpConfig,
    LimitsConfig,
    ModelConfig,
    RolloutConfig,
    ScalingConfig,
)

ROOT = Path(__file__).parents[1]
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text()


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
