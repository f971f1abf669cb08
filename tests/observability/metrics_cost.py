"""What metrics cost, as a share of throughput: ``python -m tests.observability.metrics_cost [ROUNDS]``, about a minute.

The engine runs phi-3-tiny with 16 streams, in turns with and without its counts. Then this process publishes everything that a
replica publishes, through a real Ray. Times are of the processor and not of the clock, because other programs may run. Without
counts, the second of two such rounds shows the noise. The counts of a step are also timed alone.
"""

import statistics
import sys
import time
from collections.abc import Sequence

import ray
import torch

from phi3_serve.bench.engine_only import EngineAlone
from phi3_serve.catalogue import EMBEDDED_TINY
from phi3_serve.engine.engine import Engine
from phi3_serve.engine_statistics import EngineStatistics, Histogram
from phi3_serve.observability.engine_metrics import EngineMetrics, EngineReading
from phi3_serve.serving.published_metrics import PublishedMetrics, publish_interval_s

STREAMS, NEW_TOKENS, PUBLISHED, STEPS = 16, 100, 20, 20_000


class _Nothing(Histogram):
    def observe(self, value: float, count: int = 1) -> None:
        """Count nothing."""


class Uncounted(EngineStatistics):
    """Counts as little as can be turned off: the engine adds to the plain numbers by itself."""

    def __init__(self) -> None:
        super().__init__()
        for name, value in vars(self).items():
            if isinstance(value, Histogram):
                setattr(self, name, _Nothing(value.bounds))

    def count_tokens(self, num_tokens: int, *, since: float) -> None:
        """Count nothing."""

    def end_step(self, now: float) -> None:
        """Count nothing."""


def microseconds_per_token(alone: EngineAlone, counts: EngineStatistics) -> float:
    """Of the processor, for one round of all streams."""
    alone._engine._core.statistics = counts
    began = time.process_time()
    _, streams = alone.streams(STREAMS, NEW_TOKENS)
    return 1e6 * (time.process_time() - began) / sum(stream.num_tokens for stream in streams)


def of_counting(alone: EngineAlone, rounds: int) -> None:
    """Print what the counts cost, and the same comparison of nothing with nothing."""
    kinds = {"counted": EngineStatistics, "uncounted": Uncounted, "uncounted again": Uncounted}
    found: dict[str, list[float]] = {name: [] for name in kinds}
    for number in range(rounds + 1):
        names = list(kinds) if number % 2 else list(kinds)[::-1]
        for name in names:
            spent = microseconds_per_token(alone, kinds[name]())
            if number:  # the first round warms up
                found[name].append(spent)
    for name, values in found.items():
        print(f"{name}: {statistics.median(values):.1f} us of the processor a token, {spread(values)}")
    for name in ("counted", "uncounted again"):
        pairs = [100 * (one / other - 1) for one, other in zip(found[name], found["uncounted"], strict=True)]
        print(f"{name} beside uncounted: {statistics.median(pairs):+.2f} %, {spread(pairs)}, {rounds} pairs")
    of_a_step(statistics.median(found["uncounted"]))


def of_a_step(per_token_us: float) -> None:
    """Print what the counts of a step with ``STREAMS`` rows take, beside the step itself."""
    counts = EngineStatistics()
    began = time.thread_time()
    for step in range(STEPS):
        counts.step_tokens.observe(STREAMS)
        counts.step_sequences.observe(STREAMS)
        for _ in range(STREAMS):
            counts.generation_tokens += 1
            counts.count_tokens(1, since=float(step))
        counts.end_step(step + 1.0)
    spent = 1e6 * (time.thread_time() - began) / STEPS
    share = 100 * spent / (STREAMS * per_token_us)
    print(f"the counts of a step alone: {spent:.1f} us, {share:.2f} % of a step of {STREAMS * per_token_us:.0f} us")


def spread(values: Sequence[float]) -> str:
    """The middle half."""
    lower, _, upper = statistics.quantiles(values, n=4)
    return f"half of them from {lower:.2f} to {upper:.2f}"


def of_publishing(engine: Engine) -> None:
    """Print what it costs a replica to publish all its metrics."""
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    reading = EngineReading(info=engine.info, load=engine.load, statistics=engine.statistics, load_s=1.0)
    collector = EngineMetrics("phi-3-tiny", lambda: reading)
    published = PublishedMetrics(collector)
    published.publish()  # makes the gauges
    spent = []
    for _ in range(PUBLISHED):
        began = time.thread_time()
        published.publish()
        spent.append(time.thread_time() - began)
    samples = sum(len(family.samples) for family in collector.collect())
    share = statistics.median(spent) / publish_interval_s()
    print(
        f"publishing {samples} samples: {1000 * statistics.median(spent):.2f} ms of the processor every "
        f"{publish_interval_s():g} s: {100 * share:.3f} % of one core"
    )
    ray.shutdown()


def main(rounds: int) -> None:
    """All parts, with one thread of torch: a second one spins while it waits, which costs time of the processor, too."""
    torch.set_num_threads(1)
    alone = EngineAlone(EMBEDDED_TINY)
    try:
        alone.set_question("What is 2+2?")
        of_counting(alone, rounds)
        of_publishing(alone._engine)
    finally:
        alone.close()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 40)
