"""The panels of the dashboard: what each asks Prometheus. Metrics of Ray have the prefix ``ray_``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Unit = Literal["reqps", "s", "percentunit", "short", "none", "bytes", "watt", "celsius", "joule", "suffix: tok/s"]
Kind = Literal["timeseries", "table", "stat"]

_MODEL = 'model_name=~"$model"'
_RATE = "[$__rate_interval]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One PromQL expression with the legend of its series."""

    expr: str
    legend: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One chart. ``meaning`` says what it shows and when to look at it."""

    title: str
    meaning: str
    unit: Unit
    queries: Sequence[Query]
    kind: Kind = "timeseries"


def _metric(name: str) -> str:
    return f"ray_phi3_serve_{name}{{{_MODEL}}}"


def _rate(name: str) -> str:
    return f"rate({_metric(name)}{_RATE})"


def _quantiles(name: str, *quantiles: float) -> list[Query]:
    return [
        Query(
            expr=f"histogram_quantile({q}, sum by (model_name, le) ({_rate(f'{name}_bucket')}))",
            legend=f"p{100 * q:g} {{{{model_name}}}}",
        )
        for q in quantiles
    ]


def _of_model(expr: str, prefix: str = "") -> list[Query]:
    return [Query(expr=expr, legend=f"{prefix}{{{{model_name}}}}")]


def _sum(name: str) -> str:
    return f"sum by (model_name) ({_metric(name)})"


def _sum_rate(name: str) -> str:
    return f"sum by (model_name) ({_rate(name)})"


USERS = (
    Panel(
        title="Requests that ended",
        meaning="By outcome. An error has the name of its class; disconnected: the client went away.",
        unit="reqps",
        queries=[Query(expr=f"sum by (outcome) ({_rate('requests_total')})", legend="{{outcome}}")],
    ),
    Panel(
        title="Time to first token",
        meaning="From the arrival of a streamed request in the ingress to its first text.",
        unit="s",
        queries=_quantiles("time_to_first_token_seconds", 0.5, 0.99),
    ),
    Panel(
        title="Inter-token latency",
        meaning="Time between two tokens of a request in the engine. An accepted draft divides the time of its step.",
        unit="s",
        queries=_quantiles("inter_token_latency_seconds", 0.5, 0.99),
    ),
    Panel(
        title="Time to the end of a request",
        meaning="From the arrival in the ingress; short and long answers together.",
        unit="s",
        queries=_quantiles("e2e_request_latency_seconds", 0.5, 0.99),
    ),
    Panel(
        title="Refusals (429)",
        meaning="By who has refused. haproxy and server: the capacity of all models. queue: the queue of a replica.",
        unit="reqps",
        queries=[
            Query(expr=f"sum by (refused_by) (rate(ray_phi3_serve_refusals_total{_RATE}))", legend="{{refused_by}}"),
            Query(
                expr="sum(rate(ray_serve_num_deployment_http_error_requests_total"
                f'{{deployment="haproxy",error_code="429"}}{_RATE})) or vector(0)',
                legend="haproxy",
            ),
        ],
    ),
    Panel(
        title="Requests in the server",
        meaning="Those that wait for a model to start included.",
        unit="short",
        queries=_of_model(_sum("num_requests_in_flight")),
    ),
)

ENGINE = (
    Panel(
        title="Tokens per second",
        meaning="Tokens of prompts that were read, and tokens that were chosen.",
        unit="suffix: tok/s",
        queries=[
            *_of_model(_sum_rate("generation_tokens_total"), "chosen, "),
            *_of_model(_sum_rate("prompt_tokens_total"), "read, "),
        ],
    ),
    Panel(
        title="Requests in the engines",
        meaning="preempted: they have run, and wait for blocks of the key-value cache again.",
        unit="short",
        queries=[
            *_of_model(_sum("num_requests_running"), "running, "),
            *_of_model(_sum("num_requests_waiting"), "waiting, "),
            *_of_model(_sum("num_requests_preempted"), "preempted, "),
        ],
    ),
    Panel(
        title="Time in the queue",
        meaning="From the arrival in the replica to the first step. It grows first when a model is full.",
        unit="s",
        queries=_quantiles("request_queue_time_seconds", 0.5, 0.99),
    ),
    Panel(
        title="Time to read the prompt, time to write the answer",
        meaning="The two parts of a request behind its queue, means.",
        unit="s",
        queries=[
            *_of_model(
                f"{_sum_rate('request_prefill_time_seconds_sum')} / {_sum_rate('request_prefill_time_seconds_count')}",
                "prompt, ",
            ),
            *_of_model(
                f"{_sum_rate('request_decode_time_seconds_sum')} / {_sum_rate('request_decode_time_seconds_count')}",
                "answer, ",
            ),
        ],
    ),
    Panel(
        title="Batch size",
        meaning="Sequences that one step runs, mean and 99th percentile.",
        unit="short",
        queries=[
            *_of_model(f"{_sum_rate('batch_size_sum')} / {_sum_rate('batch_size_count')}", "mean, "),
            *_quantiles("batch_size", 0.99),
        ],
    ),
    Panel(
        title="Tokens in a step",
        meaning="Mean. Prompts make steps large, which delays the tokens of the other requests.",
        unit="short",
        queries=_of_model(
            f"{_sum_rate('iteration_tokens_total_sum')} / {_sum_rate('iteration_tokens_total_count')}",
        ),
    ),
    Panel(
        title="Use of the key-value cache",
        meaning="The fullest replica of each model. At 100 % requests are preempted.",
        unit="percentunit",
        queries=_of_model(f"max by (model_name) ({_metric('kv_cache_usage_perc')})"),
    ),
    Panel(
        title="Preemptions",
        meaning="Requests that lost their place because the cache was full. Their tokens are computed again.",
        unit="reqps",
        queries=_of_model(_sum_rate("num_preemptions_total")),
    ),
    Panel(
        title="Hits in the prefix cache",
        meaning="Part of the tokens of prompts that were not computed again.",
        unit="percentunit",
        queries=_of_model(f"{_sum_rate('prefix_cache_hits_total')} / ({_sum_rate('prefix_cache_queries_total')} > 0)"),
    ),
    Panel(
        title="Loads of adapters",
        meaning="Loads, loads that failed, and adapters that made room. Many that made room: the memory is small.",
        unit="reqps",
        queries=[
            *_of_model(_sum_rate("adapter_loads_total"), "loads, "),
            *_of_model(_sum_rate("adapter_load_failures_total"), "failures, "),
            *_of_model(_sum_rate("adapter_evictions_total"), "made room, "),
        ],
    ),
    Panel(
        title="Memory of adapters",
        meaning="Main memory of all replicas; adapter_memory_bytes limits each one.",
        unit="bytes",
        queries=_of_model(_sum("adapter_memory_bytes")),
    ),
    Panel(
        title="Accepted tokens of drafts",
        meaning="Per second, of requests with prompt_lookup_num_tokens; and tokens that were drafted.",
        unit="suffix: tok/s",
        queries=[
            *_of_model(_sum_rate("spec_decode_num_accepted_tokens_total"), "accepted, "),
            *_of_model(_sum_rate("spec_decode_num_draft_tokens_total"), "drafted, "),
        ],
    ),
    Panel(
        title="Size of requests",
        meaning="Mean tokens of prompt and answer.",
        unit="short",
        queries=[
            *_of_model(
                f"{_sum_rate('request_prompt_tokens_sum')} / {_sum_rate('request_prompt_tokens_count')}", "prompt, "
            ),
            *_of_model(
                f"{_sum_rate('request_generation_tokens_sum')} / {_sum_rate('request_generation_tokens_count')}",
                "answer, ",
            ),
        ],
    ),
)

MODELS = (
    Panel(
        title="States",
        meaning="The state of each model as an ingress sees it.",
        unit="none",
        queries=[
            Query(
                expr=f"max by (model_name, state) ({_metric('model_state')}) == 1",
                legend="{{model_name}}: {{state}}",
            )
        ],
        kind="table",
    ),
    Panel(
        title="Replicas that answer",
        meaning="As an ingress sees them.",
        unit="short",
        queries=_of_model(f"max by (model_name) ({_metric('num_replicas')})"),
    ),
    Panel(
        title="What replicas run on",
        meaning="Device, type, quantization and kernels of each replica.",
        unit="none",
        queries=[
            Query(
                expr=f"max by (model_name, replica, device, dtype, quantization, kernels) ({_metric('engine_info')})",
                legend="{{replica}}",
            )
        ],
        kind="table",
    ),
    Panel(
        title="Slow kernels",
        meaning="Kernels that slower ones replace. More than 0 means a broken installation or GPU.",
        unit="short",
        queries=_of_model(f"max by (model_name) ({_metric('num_kernels_replaced')})"),
    ),
    Panel(
        title="Time to load the model",
        meaning="The slowest replica.",
        unit="s",
        queries=_of_model(f"max by (model_name) ({_metric('model_load_seconds')})"),
    ),
    Panel(
        title="Size of the key-value cache",
        meaning="Tokens that all replicas hold.",
        unit="short",
        queries=_of_model(_sum("kv_cache_tokens")),
    ),
    Panel(
        title="Batches",
        meaning="Batches that run now.",
        unit="short",
        queries=[Query(expr="sum(ray_phi3_serve_num_batches_running)", legend="batches")],
    ),
)

BATCHES = (
    Panel(
        title="Replies to lines of batches",
        meaning="By HTTP status. Lines that get 429 or 503 are sent again.",
        unit="reqps",
        queries=[Query(expr=f"sum by (status) ({_rate('batch_requests_total')})", legend="{{status}}")],
    ),
)

GPU = (
    Panel(
        title="Use of the GPU",
        meaning="Part of the time in which a kernel ran. It says nothing of how well the kernel uses the card.",
        unit="percentunit",
        queries=_of_model(f"avg by (model_name) ({_metric('gpu_utilization_perc')})"),
    ),
    Panel(
        title="Memory of the GPU",
        meaning="The fullest one. The key-value cache takes what the weights leave, so it is nearly full at all times.",
        unit="percentunit",
        queries=_of_model(
            f"max by (model_name) ({_metric('gpu_memory_used_bytes')} / {_metric('gpu_memory_total_bytes')})"
        ),
    ),
    Panel(
        title="Power and temperature",
        meaning="The sum of the power of all GPUs of a model; the warmest one.",
        unit="watt",
        queries=[
            *_of_model(_sum("gpu_power_watts"), "W, "),
            *_of_model(f"max by (model_name) ({_metric('gpu_temperature_celsius')})", "°C, "),
        ],
    ),
    Panel(
        title="Energy of a token",
        meaning="Joules for each chosen token, the reading of prompts included.",
        unit="joule",
        queries=_of_model(f"{_sum_rate('gpu_energy_joules_total')} / {_sum_rate('generation_tokens_total')}"),
    ),
)

# Panels of a row show data whenever requests are answered, except those of GPUs and of batches.
ROWS: Mapping[str, Sequence[Panel]] = {
    "What clients see": USERS,
    "Engines": ENGINE,
    "Models": MODELS,
    "Batches": BATCHES,
    "GPUs": GPU,
}
