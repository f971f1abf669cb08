import logging

import pytest

from phi3_serve.observability.progress import Progress, human_bytes


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (7_642_159_104, "7.6 GB"), (393_216, "393.2 kB"), (2e13, "20.0 TB")]
)
def test_human_bytes(count: float, text: str) -> None:
    assert human_bytes(count) == text


def test_lines_come_at_intervals_and_at_the_end(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("phi3_serve.observability.progress.time.monotonic", lambda: now[0])
    with caplog.at_level(logging.INFO, "phi3_serve"):
        bar = Progress("m: loading weights", 1000)
        for _ in range(10):
            now[0] += 0.9
            bar.advance(100)
        bar.finish()
    assert [r.getMessage() for r in caplog.records] == [
        "m: loading weights: 30 % (300 B of 1.0 kB, 2.7 s)",
        "m: loading weights: 60 % (600 B of 1.0 kB, 5.4 s)",
        "m: loading weights: 90 % (900 B of 1.0 kB, 8.1 s)",
        "m: loading weights: 100 % (1.0 kB of 1.0 kB, 9.0 s)",
    ]
