"""The counters of the ingress, for Prometheus at ``GET /metrics``.

Suffixes are those of vLLM's metrics, so that dashboards and scaling rules port over. The figures are those of one
ingress process; Ray's own metrics, on every node's metrics port, have the cluster.
"""

import time
from collections.abc import AsyncGenerator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from phi3_serve.core import Delta, Done, EngineInfo, Usage
from phi3_serve.errors import Phi3ServeError

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


def accepts_prometheus(accept: str) -> bool:
    """Whether an Accept header names a text format of Prometheus; ``*/*`` alone does not."""
    return "text/plain" in accept or "openmetrics" in accept


class RequestMetrics:
    """Counts the requests of one ingress process."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        labels = ("model_name",)
        self._running = Gauge("phi3_serve_num_requests_running", "Requests that wait or run", labels, registry=registry)
        self._requests = Counter(
            "phi3_serve_requests", "Requests by how they ended", (*labels, "outcome"), registry=registry
        )
        self._first_event = Histogram(
            "phi3_serve_time_to_first_event_seconds",
            "Time to the first event: the first text of a stream, the whole of a plain answer",
            labels,
            registry=registry,
            buckets=_SECONDS,
        )
        self._duration = Histogram(
            "phi3_serve_e2e_request_latency_seconds", "Time to the end", labels, registry=registry, buckets=_SECONDS
        )
        self._tokenizations = Counter(
            "phi3_serve_tokenizer_requests", "Uses of a tokenizer alone", labels, registry=registry
        )
        self._prompt_tokens = Counter("phi3_serve_prompt_tokens", "Tokens read", labels, registry=registry)
        self._generated_tokens = Counter("phi3_serve_generation_tokens", "Tokens made", labels, registry=registry)
        self._engine = Gauge(
            "phi3_serve_engine_info",
            "1; what the engine of a model runs on",
            (*labels, "device", "compute_capability", "dtype", "quantization", "kernels"),
            registry=registry,
        )
        self._replaced_kernels = Gauge(
            "phi3_serve_num_kernels_replaced", "Kernels that slower ones replace", labels, registry=registry
        )
        self._cache_tokens = Gauge(
            "phi3_serve_kv_cache_tokens", "Tokens that the key-value cache holds", labels, registry=registry
        )
        of_key = ("api_key", *labels)
        self._key_requests = Counter("phi3_serve_api_key_requests", "Requests of a key", of_key, registry=registry)
        self._key_prompt_tokens = Counter(
            "phi3_serve_api_key_prompt_tokens", "Tokens read for a key", of_key, registry=registry
        )
        self._key_generated_tokens = Counter(
            "phi3_serve_api_key_generation_tokens", "Tokens made for a key", of_key, registry=registry
        )
        self._key_refusals = Counter(
            "phi3_serve_api_key_refusals", "Requests beyond a limit of their key", ("api_key",), registry=registry
        )

    async def observe(
        self, model: str, events: AsyncGenerator[Delta | Done, None], *, api_key: str | None = None
    ) -> AsyncGenerator[Delta | Done, None]:
        """``events`` as they are, counted, and for ``api_key`` too if one is given."""
        began, is_first, outcome = time.monotonic(), True, "disconnected"
        self._running.labels(model).inc()
        if api_key is not None:
            self._key_requests.labels(api_key, model).inc()
        try:
            async for event in events:
                if is_first:
                    self._first_event.labels(model).observe(time.monotonic() - began)
                    is_first = False
                if isinstance(event, Done):
                    self._count_tokens(event.usage, model, api_key)
                    outcome = "success"
                yield event
        except Phi3ServeError as error:
            outcome = type(error).__name__
            raise
        finally:
            self._running.labels(model).dec()
            self._requests.labels(model, outcome).inc()
            self._duration.labels(model).observe(time.monotonic() - began)
            await events.aclose()

    def show_engines(self, engines: Mapping[str, EngineInfo]) -> None:
        """Show what the models in ``engines`` run on, and nothing of other models."""
        for gauge in (self._engine, self._replaced_kernels, self._cache_tokens):
            gauge.clear()
        for model, info in engines.items():
            capability = info.compute_capability or ""
            self._engine.labels(model, info.device, capability, info.dtype, info.quantization, info.kernels).set(1)
            self._replaced_kernels.labels(model).set(len(info.replaced_kernels))
            self._cache_tokens.labels(model).set(info.cache_tokens)

    def count_tokenization(self, model: str) -> None:
        """Count a request that only uses the tokenizer of ``model``."""
        self._tokenizations.labels(model).inc()

    def count_refusal(self, api_key: str) -> None:
        """Count a request that a limit of ``api_key`` has refused."""
        self._key_refusals.labels(api_key).inc()

    def _count_tokens(self, usage: Usage, model: str, api_key: str | None) -> None:
        self._prompt_tokens.labels(model).inc(usage.prompt_tokens)
        self._generated_tokens.labels(model).inc(usage.completion_tokens)
        if api_key is not None:
            self._key_prompt_tokens.labels(api_key, model).inc(usage.prompt_tokens)
            self._key_generated_tokens.labels(api_key, model).inc(usage.completion_tokens)

    def exposition(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self._registry)
