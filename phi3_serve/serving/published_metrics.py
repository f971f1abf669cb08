"""Metrics of this process through Ray: on the metrics port of its node, where all processes of the cluster add up.

Ray puts ``ray_`` before each name, and adds the labels ``deployment``, ``replica`` and ``application``.

Every sample is published as a gauge of Ray, counters and buckets too. The reasons are in the source of Ray 2.60:

- A histogram of Ray is rebuilt on the node from the middles of its buckets, with one call for each value
  (``open_telemetry_metric_recorder.py``). Its sum is wrong, and each token would cost a call.
- A counter of Ray has no series before its first event, so that ``rate()`` misses the first error.
- The node forgets a gauge 20 seconds after its process, and keeps a counter until the node itself ends.

One call takes 12 microseconds, so metrics are published in a period and not with each event.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import ray
from prometheus_client.registry import Collector
from ray.serve import metrics

logger = logging.getLogger("ray.serve")


def publish_interval_s() -> float:
    """Half the interval of Ray's reports, 10 seconds by default. Ray forgets what was not set for two reports."""
    report_interval_ms = max(ray._config.metrics_report_interval_ms(), 1000)  # as in open_telemetry_metric_recorder.py
    return float(report_interval_ms) / 2000


class PublishedMetrics:
    """The metrics of one collector as gauges of Ray."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        self._gauges: dict[str, metrics.Gauge] = {}

    def publish(self) -> None:
        """Set every gauge. Only a process of Ray Serve may call this."""
        for family in self._collector.collect():
            for sample in family.samples:
                if sample.name.endswith("_created"):  # prometheus_client adds the time of the first event
                    continue
                gauge = self._gauges.get(sample.name)
                if gauge is None:
                    tag_keys: Any = tuple(sample.labels)  # Ray's annotation allows one tag only
                    gauge = metrics.Gauge(sample.name, family.documentation, tag_keys)
                    self._gauges[sample.name] = gauge
                gauge.set(float(sample.value), tags=dict(sample.labels))

    async def publish_forever(self, refresh: Callable[[], Awaitable[None]] | None = None) -> None:
        """Publish again and again, each time after ``refresh``, until the task is cancelled."""
        interval_s = publish_interval_s()
        while True:
            try:
                if refresh is not None:
                    await refresh()
                await asyncio.to_thread(self.publish)
            except Exception:  # requests are answered all the same
                logger.warning("metrics could not be published", exc_info=True)
            await asyncio.sleep(interval_s)
