"""The requests of a day: when each arrives, and how long its prompt and its answer are."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

DAY = 86_400.0  # seconds
_MINUTES = int(DAY // 60)
_PEAK_HOUR, _PEAK_BESIDE_VALLEY = 14.0, 12.0  # BurstGPT, the mean of 61 days (Wang et al., KDD 2025)
_QUIET = (2.0, 5.0)  # hours of the night without any request
_BURSTS, _BURST_FACTOR, _BURST_MINUTES = 12, 2.5, (2, 12)
# Between minutes the rate of Azure's conversation trace of 2023 varies by this much, and one minute resembles the next.
_NOISE, _LIKENESS = 0.24, 0.7
# Quantiles of the same trace (Patel et al., ISCA 2024): 19,366 requests of an hour.
_QUANTILES = (0.0, 0.1, 0.5, 0.9, 0.99, 1.0)
_PROMPT_TOKENS = (2, 207, 1020, 2735, 4142, 8000)
_ANSWER_TOKENS = (7, 54, 129, 424, 601, 1000)


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Requests in the order in which they arrive. All arrays have the shape [requests]."""

    seconds: NDArray[np.float64]  # since midnight
    prompt_tokens: NDArray[np.int64]
    answer_tokens: NDArray[np.int64]

    @property
    def duration(self) -> float:
        """Seconds, at least until the last request."""
        return DAY if len(self.seconds) == 0 else max(float(self.seconds[-1]), 1.0)


def synthetic_day(num_requests: int, seed: int) -> Arrivals:
    """A day with a peak in the afternoon, bursts of some minutes, and three hours without a request."""
    random = np.random.default_rng(seed)
    share = _rate_by_minute(random)
    counts = random.multinomial(num_requests, share / share.sum())
    seconds = np.repeat(np.arange(_MINUTES) * 60.0, counts) + random.uniform(0, 60, num_requests)
    prompts, answers = (
        np.interp(random.uniform(size=num_requests), _QUANTILES, tokens).astype(np.int64)
        for tokens in (_PROMPT_TOKENS, _ANSWER_TOKENS)
    )
    return Arrivals(np.sort(seconds), prompts, answers)


def _rate_by_minute(random: np.random.Generator) -> NDArray[np.float64]:
    """Requests of each minute, up to a factor."""
    hours = np.arange(_MINUTES) / 60
    depth = (_PEAK_BESIDE_VALLEY - 1) / (_PEAK_BESIDE_VALLEY + 1)
    rate = 1 + depth * np.cos((hours - _PEAK_HOUR) * 2 * np.pi / 24)
    noise = np.empty(_MINUTES)
    noise[0] = 0
    for minute, shock in enumerate(random.normal(size=_MINUTES - 1), 1):
        noise[minute] = _LIKENESS * noise[minute - 1] + (1 - _LIKENESS**2) ** 0.5 * shock
    rate *= np.exp(_NOISE * noise - _NOISE**2 / 2)
    for start in random.integers(0, _MINUTES, _BURSTS):
        rate[start : start + random.integers(*_BURST_MINUTES)] *= _BURST_FACTOR
    rate[(hours >= _QUIET[0]) & (hours < _QUIET[1])] = 0
    return rate


def recorded(file: Path) -> Arrivals:
    """The requests of a CSV file in the format of Azure's traces: TIMESTAMP, ContextTokens, GeneratedTokens.

    Raises:
        ValueError: the file has no such columns, or no rows.
    """
    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    if not rows or not {"TIMESTAMP", "ContextTokens", "GeneratedTokens"} <= rows[0].keys():
        raise ValueError(f"{file} must have rows with TIMESTAMP, ContextTokens and GeneratedTokens.")
    # numpy reads neither the time zone of some traces nor more than nanoseconds.
    times = np.array([row["TIMESTAMP"].split("+")[0].strip().replace(" ", "T") for row in rows], "datetime64[us]")
    order = np.argsort(times, kind="stable")
    seconds = (times - times.min()).astype(np.float64) / 1e6
    prompts, answers = (np.array([int(row[name]) for row in rows]) for name in ("ContextTokens", "GeneratedTokens"))
    return Arrivals(seconds[order], np.maximum(prompts, 1)[order], np.maximum(answers, 1)[order])
