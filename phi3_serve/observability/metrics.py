"""What one ingress process counts: at ``GET /metrics`` for Prometheus, and through Ray on the metrics port of its node.

Names behind ``phi3_serve_`` are those of vLLM's metrics (vllm/v1/metrics/loggers.py), so that dashboards port over.
``engine_metrics`` has what the replicas count.
"""

import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from phi3_serve.core.event import Delta, Done
from phi3_serve.core.generation_request import GenerationRequest
from phi3_serve.core.usage import Usage
from phi3_serve.core.variant_state import State, VariantState
from phi3_serve.engine_statistics import REQUEST_SECONDS
from phi3_serve.errors import Overloaded, Phi3ServeError, RefusedBy

CONTENT_TYPE = CONTENT_TYPE_LATEST
_TOKENS = (1, 8, 32, 128, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
_MODEL = ("model_name",)


def accepts_prometheus(accept: str) -> bool:
    """Whether an Accept header names a text format of Prometheus; ``*/*`` alone does not."""
    return "text/plain" in accept or "openmetrics" in accept


class RequestMetrics:
    """Counts the requests of one ingress process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._in_flight = self._gauge("num_requests_in_flight", "Requests that wait or run")
        self._requests = self._counter("requests", "Requests by how they ended", "outcome")
        self._first_token = self._histogram(
            "time_to_first_token_seconds", "Time to the first text of a stream", REQUEST_SECONDS
        )
        self._duration = self._histogram(
            "e2e_request_latency_seconds",
            "Time to the end, by its reason: stop, length, error, or abort by the client",
            REQUEST_SECONDS,
            "finished_reason",
        )
        self._prompt_tokens = self._histogram("request_prompt_tokens", "Tokens of the prompt of a request", _TOKENS)
        self._generated_tokens = self._histogram("request_generation_tokens", "Tokens of the answer", _TOKENS)
        self._tokenizations = self._counter("tokenizer_requests", "Uses of a tokenizer alone")
        self._refusals = Counter(
            "phi3_serve_refusals", "Answers of 429 by who has refused", ("refused_by",), registry=self.registry
        )
        self._states = self._gauge("model_state", "1 for the state of a model, 0 for the other states", "state")
        self._replicas = self._gauge("num_replicas", "Replicas that answer")
        self._batch_requests = self._counter("batch_requests", "Replies to lines of batches by HTTP status", "status")
        self._batches = Gauge("phi3_serve_num_batches_running", "Batches that run", registry=self.registry)
        self._key_requests = self._of_key("requests", "Requests of a key")
        self._key_prompt_tokens = self._of_key("prompt_tokens", "Tokens read for a key")
        self._key_generated_tokens = self._of_key("generation_tokens", "Tokens made for a key")
        self._key_refusals = Counter(
            "phi3_serve_api_key_refusals",
            "Requests beyond a limit of their key",
            ("api_key",),
            registry=self.registry,
        )
        for refused_by in get_args(
            RefusedBy
        ):  # a counter that appears with its first refusal would hide it from rate()
            self._refusals.labels(refused_by)

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(f"phi3_serve_{name}", meaning, (*_MODEL, *labels), registry=self.registry)

    def _gauge(self, name: str, meaning: str, *labels: str) -> Gauge:
        return Gauge(f"phi3_serve_{name}", meaning, (*_MODEL, *labels), registry=self.registry)

    def _histogram(self, name: str, meaning: str, bounds: Sequence[float], *labels: str) -> Histogram:
        labels = (*_MODEL, *labels)
        return Histogram(f"phi3_serve_{name}", meaning, labels, registry=self.registry, buckets=bounds)

    def _of_key(self, name: str, meaning: str) -> Counter:
        return Counter(f"phi3_serve_api_key_{name}", meaning, ("api_key", *_MODEL), registry=self.registry)

    async def observe(
        self, request: GenerationRequest, events: AsyncGenerator[Delta | Done, None], *, api_key: str | None = None
    ) -> AsyncGenerator[Delta | Done, None]:
        """``events`` of ``request`` as they are, counted, and for ``api_key`` too if one is given."""
        model, began = request.model, time.monotonic()
        awaits_first, outcome, reason = request.stream, "disconnected", "abort"
        self._in_flight.labels(model).inc()
        if api_key is not None:
            self._key_requests.labels(api_key, model).inc()
        try:
            async for event in events:
                if awaits_first:
                    self._first_token.labels(model).observe(time.monotonic() - began)
                    awaits_first = False
                if isinstance(event, Done):
                    self._count_tokens(event.usage, model, api_key)
                    outcome, reason = "success", event.completions[0].sequence.finish_reason
                yield event
        except Phi3ServeError as error:
            outcome, reason = type(error).__name__, "error"
            if isinstance(error, Overloaded):
                self.count_refusal(error)
            raise
        finally:
            self._in_flight.labels(model).dec()
            self._requests.labels(model, outcome).inc()
            self._duration.labels(model, reason).observe(time.monotonic() - began)
            await events.aclose()

    def show_states(self, states: Mapping[str, VariantState]) -> None:
        """Show the states of all models."""
        for model, now in states.items():
            self._replicas.labels(model).set(now.num_replicas)
            for state in get_args(State):
                self._states.labels(model, state).set(state == now.state)

    def count_tokenization(self, model: str) -> None:
        """Count a request that only uses the tokenizer of ``model``."""
        self._tokenizations.labels(model).inc()

    def count_refusal(self, refusal: Overloaded) -> None:
        """Count a request that was refused."""
        self._refusals.labels(refusal.refused_by).inc()

    def count_refusal_of_key(self, api_key: str, refusal: Overloaded) -> None:
        """Count a request that a limit of ``api_key`` has refused."""
        self.count_refusal(refusal)
        self._key_refusals.labels(api_key).inc()

    def count_batch_request(self, model: str, status: int) -> None:
        """Count a reply to a line of a batch."""
        self._batch_requests.labels(model, str(status)).inc()

    def show_batches(self, num_running: Callable[[], int]) -> None:
        """Show how many batches this process runs."""
        self._batches.set_function(num_running)

    def _count_tokens(self, usage: Usage, model: str, api_key: str | None) -> None:
        self._prompt_tokens.labels(model).observe(usage.prompt_tokens)
        self._generated_tokens.labels(model).observe(usage.completion_tokens)
        if api_key is not None:
            self._key_prompt_tokens.labels(api_key, model).inc(usage.prompt_tokens)
            self._key_generated_tokens.labels(api_key, model).inc(usage.completion_tokens)

    def exposition(self, engines: Collector) -> bytes:
        """All figures in Prometheus' text format, and after them those of ``engines``."""
        with_engines = CollectorRegistry()
        with_engines.register(engines)
        return generate_latest(self.registry) + generate_latest(with_engines)
