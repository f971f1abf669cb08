"""Traces of requests by OpenTelemetry, with its attributes for generative AI. Off unless the config has an endpoint.

https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/ has the names of the attributes. A request has one span
of HTTP, below it one span for each request to a model, and below that the three parts of its time in the engine. The
spans are made when the request has ended, from the times that the engine has measured. So nothing delays a token.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from phi3_serve import __version__
from phi3_serve.core.prompt import Conversation
from phi3_serve.errors import Phi3ServeError
from phi3_serve.observability.request_record import Generation, RequestRecord

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Tracer

PROVIDER = "phi3-serve"
_NANOSECONDS = 1e9


class Traces:
    """Makes spans of records. Use it as a sink of records."""

    def __init__(self, provider: "TracerProvider") -> None:
        self._provider = provider
        self._tracer: Tracer = provider.get_tracer("phi3_serve", __version__)

    def __call__(self, record: RequestRecord) -> None:
        """Make the spans of ``record``."""
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        of_client = TraceContextTextMapPropagator().extract(record.headers)
        span = self._tracer.start_span(
            f"{record.method} {record.path}",
            of_client,
            kind=SpanKind.SERVER,
            attributes=dict(_of_http(record)),
            start_time=record.began_at,
        )
        _fail(span, "error" if (record.status or 0) >= 500 else None)
        for generation in record.generations:
            self._add(generation, span)
        span.end(record.ended_at)

    def _add(self, generation: Generation, parent: Any) -> None:
        from opentelemetry.trace import SpanKind, set_span_in_context

        operation = _operation(generation)
        span = self._tracer.start_span(
            f"{operation} {generation.request.model}",
            set_span_in_context(parent),
            kind=SpanKind.CLIENT,
            attributes=dict(_of_generation(generation, operation)),
            start_time=generation.began_at,
        )
        _fail(span, generation.error)
        for name, start, end in _parts(generation):
            part = self._tracer.start_span(f"engine.{name}", set_span_in_context(span), start_time=start)
            part.end(end)
        span.end(generation.ended_at)

    def close(self) -> None:
        """Send what has not been sent. This may take seconds."""
        self._provider.shutdown()


def traces_to(endpoint: str, sampled: float) -> Traces:
    """Traces that are sent to the collector at ``endpoint``, a URL, by OTLP over HTTP.

    ``sampled``: the part of the traces that is sent, from 0 to 1. A trace that a client has begun follows the client.

    Raises:
        Phi3ServeError: the optional packages are not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        raise Phi3ServeError("traces.endpoint needs more packages: pip install 'phi3-serve[otel]'.") from None
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

    resource = Resource.create({"service.name": PROVIDER, "service.version": __version__})
    provider = TracerProvider(resource=resource, sampler=ParentBasedTraceIdRatio(sampled))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces")))
    return Traces(provider)


def _of_http(record: RequestRecord) -> Iterator[tuple[str, Any]]:
    yield "http.request.method", record.method
    yield "url.path", record.path
    yield "phi3_serve.request_id", record.request_id
    if record.status is not None:
        yield "http.response.status_code", record.status
    if record.api_key is not None:
        yield "phi3_serve.api_key", record.api_key


def _of_generation(generation: Generation, operation: str) -> Iterator[tuple[str, Any]]:
    request, done = generation.request, generation.done
    yield "gen_ai.operation.name", operation
    yield "gen_ai.provider.name", PROVIDER
    yield "gen_ai.request.model", request.model
    yield "gen_ai.response.model", request.model
    yield "gen_ai.response.id", request.request_id
    yield "gen_ai.request.stream", request.stream
    if request.adapters:
        yield "phi3_serve.adapters", [adapter.name for adapter in request.adapters]
    for attribute, name in (
        ("max_tokens", "max_new_tokens"),
        ("temperature", "temperature"),
        ("top_p", "top_p"),
        ("top_k", "top_k"),
        ("seed", "seed"),
        ("frequency_penalty", "frequency_penalty"),
        ("presence_penalty", "presence_penalty"),
    ):
        if (value := getattr(request.parameters, name)) is not None:
            yield f"gen_ai.request.{attribute}", value
    if request.stream and generation.first_at is not None:
        yield "gen_ai.response.time_to_first_chunk", (generation.first_at - generation.began_at) / _NANOSECONDS
    if done is not None:
        yield "gen_ai.usage.input_tokens", done.usage.prompt_tokens
        yield "gen_ai.usage.output_tokens", done.usage.completion_tokens
        yield "gen_ai.response.finish_reasons", [one.sequence.finish_reason for one in done.completions]


def _operation(generation: Generation) -> str:
    return "chat" if isinstance(generation.request.prompt, Conversation) else "text_completion"


def _parts(generation: Generation) -> Iterator[tuple[str, int, int]]:
    """The parts of the time in the engine: name, start and end. The last one ends when the answer came here."""
    if (timings := generation.timings) is None or generation.ended_at is None:
        return
    seconds = (timings.queue_s, timings.prompt_s, timings.answer_s)
    at = generation.ended_at - round(sum(seconds) * _NANOSECONDS)
    for name, part_s in zip(("queue", "prefill", "decode"), seconds, strict=True):
        end = at + round(part_s * _NANOSECONDS)
        yield name, at, end
        at = end


def _fail(span: Any, error: str | None) -> None:
    if error is None:
        return
    from opentelemetry.trace import Status, StatusCode

    span.set_attribute("error.type", error)
    span.set_status(Status(StatusCode.ERROR, error))
