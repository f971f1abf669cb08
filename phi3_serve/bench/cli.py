"""The commands ``phi3-serve bench ...``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from phi3_serve import catalogue
from phi3_serve.bench import peer_packages
from phi3_serve.bench.output import Output
from phi3_serve.client import Client
from phi3_serve.errors import Phi3ServeError
from phi3_serve.options import DEFAULT_URL, AsJson, Key, Svg, Url

if TYPE_CHECKING:
    from phi3_serve.engine.kernels.kv_cache import KvCacheDtype

NO_PEERS = "none"

app = typer.Typer(help="Measure speed.", no_args_is_help=True)


@app.command("engine")
def bench_engine(
    shape: Annotated[
        str, typer.Option(help="small, mini or medium; probe is for tests. mini:8 is mini with 8 decoder layers.")
    ] = "small",
    concurrency: Annotated[str, typer.Option(help="Requests in flight; several with commas.")] = "1,16",
    workload: Annotated[
        str, typer.Option(help="plain, sampled, beams, exotic, structured; several with commas.")
    ] = "plain",
    peers: Annotated[
        str, typer.Option(help="none, or generate, batching, and if installed vllm, llamacpp; several with commas.")
    ] = NO_PEERS,
    prompt_tokens: Annotated[int, typer.Option(min=8, help="Tokens of a prompt.")] = 32,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 64,
    requests: Annotated[int, typer.Option(min=0, help="Requests a run; 0: twice the concurrency.")] = 0,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; medians are shown.")] = 3,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="The type of the weights.")] = "bfloat16",
    computed: Annotated[
        str,
        typer.Option(
            "--computed-in",
            help="The type to compute in; auto: that of the weights, if the processor does. "
            "A server on a CPU computes in float32 by default.",
        ),
    ] = "auto",
    quantization: Annotated[
        str, typer.Option(help="none, int8, int4, fp8: how the weights are rounded; several with commas.")
    ] = "none",
    kv_cache_dtype: Annotated[
        str, typer.Option(help="auto, int8, fp8: how keys and values are stored; several with commas.")
    ] = "auto",
    adapters: Annotated[
        int, typer.Option(min=0, help="Adapters (LoRA) that requests take in turns, in two more workloads.")
    ] = 0,
    rank: Annotated[int, typer.Option(min=1, max=256, help="Of the adapters.")] = 16,
    peer_dtype: Annotated[str, typer.Option(help="The type in which peers compute; auto: the same.")] = "auto",
    threads: Annotated[int, typer.Option(min=0, help="Threads of torch; 0: torch decides.")] = 0,
    as_json: AsJson = False,
    svg: Svg = None,
) -> None:
    """Run the engine alone, without Ray, on random weights of a named shape."""
    from phi3_serve.bench import engine  # torch takes seconds to import
    from phi3_serve.bench.workload import ADAPTED_KINDS, KINDS

    if engine.LLAMACPP in peers.split(",") and device != "cpu":
        raise typer.BadParameter("llamacpp is measured on a CPU only.", param_hint="--peers")
    if catalogue.FP8 in quantization.split(",") and device != "cuda":
        raise typer.BadParameter("fp8 is measured on a GPU only.", param_hint="--quantization")
    settings = engine.Settings(
        shape=_shape(shape),
        device=_one_of("--device", device, ("cpu", "cuda"))[0],
        dtype=_one_of("--dtype", dtype, ("float32", "bfloat16", "float16"))[0],
        computed=_one_of("--computed-in", computed, ("auto", "float32", "bfloat16", "float16"))[0],
        quantization=_one_of("--quantization", quantization, catalogue.QUANTIZATIONS),
        peer_dtype=_one_of("--peer-dtype", peer_dtype, ("auto", "float32", "bfloat16", "float16"))[0],
        concurrency=_counts("--concurrency", concurrency),
        workloads=(*_one_of("--workload", workload, KINDS), *(ADAPTED_KINDS if adapters else ())),
        peers=() if peers in ("", NO_PEERS) else _one_of("--peers", peers, engine.PEERS),
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        requests=requests,
        rounds=rounds,
        threads=threads,
        kv_cache_dtype=_kv_cache_dtypes(kv_cache_dtype, device),
        adapters=adapters,
        rank=rank,
    )
    for peer in settings.peers:  # now, and not after minutes of work
        if (problem := peer_packages.missing(peer)) is not None:
            raise typer.BadParameter(problem, param_hint="--peers")
    engine.run(settings, Output(as_json, svg))


@app.command("http")
def bench_http(
    url: Url = DEFAULT_URL,
    model: Annotated[str, typer.Option(help="The model to ask.")] = "phi-3-tiny",
    concurrency: Annotated[str, typer.Option(help="Streams at once; several with commas.")] = "1,16",
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer, at most.")] = 128,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds after a first one that warms up.")] = 5,
    engine: Annotated[
        Path | None,
        typer.Option(help="A checkpoint that the engine also runs alone; `embedded`: phi-3-tiny."),
    ] = None,
    api_key: Key = None,
    as_json: AsJson = False,
    svg: Svg = None,
) -> None:
    """Measure a running server through its endpoints: time to the first token, tokens per second."""
    from phi3_serve.bench import http

    settings = http.Settings(
        url=url.rstrip("/"),
        model=model,
        concurrency=_counts("--concurrency", concurrency),
        new_tokens=new_tokens,
        rounds=rounds,
        engine=catalogue.EMBEDDED_TINY if engine == Path("embedded") else engine,
    )
    try:
        http.run(settings, Client(url, api_key), Output(as_json, svg))
    except Phi3ServeError as error:
        typer.echo(error.message, err=True)
        raise typer.Exit(2) from None


@app.command("crowd", hidden=True)  # the earlier name
@app.command("overload")
def bench_overload(
    url: Url = DEFAULT_URL,
    model: Annotated[str, typer.Option(help="The model to ask.")] = "phi-3-tiny",
    clients: Annotated[str, typer.Option(help="Clients at once; several with commas.")] = "1000",
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer, at most.")] = 64,
    seconds: Annotated[float, typer.Option(min=0, help="Seconds for which they continue; 0: one request each.")] = 0,
    api_key: Key = None,
    as_json: AsJson = False,
    svg: Svg = None,
) -> None:
    """Send more requests than a running server can take: how many are answered and refused, and how fast."""
    from phi3_serve.bench import overload

    counts = _counts("--clients", clients)
    settings = overload.Settings(url.rstrip("/"), model, counts, new_tokens, seconds)
    overload.run(settings, Output(as_json, svg), api_key)


@app.command("turns", hidden=True)  # the earlier name
@app.command("multi-turn")
def bench_multi_turn(
    url: Url = DEFAULT_URL,
    model: Annotated[str, typer.Option(help="The model to ask.")] = "phi-3-tiny",
    conversations: Annotated[int, typer.Option(min=1, help="Conversations at once.")] = 8,
    turns: Annotated[int, typer.Option(min=1, help="Questions in each.")] = 4,
    words: Annotated[int, typer.Option(min=1, help="Words of each system prompt.")] = 800,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer, at most.")] = 16,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, each of new conversations.")] = 5,
    seed: Annotated[
        int,
        typer.Option(help="Seed of the conversations; a new one avoids the prefixes of an earlier run."),
    ] = 0,
    api_key: Key = None,
    as_json: AsJson = False,
    svg: Svg = None,
) -> None:
    """Hold conversations with a running server: the gain of a prefix that is already in memory."""
    from phi3_serve.bench import multi_turn

    settings = multi_turn.Settings(url.rstrip("/"), model, conversations, turns, words, new_tokens, rounds, seed)
    try:
        multi_turn.run(settings, Client(url, api_key), Output(as_json, svg))
    except Phi3ServeError as error:
        typer.echo(error.message, err=True)
        raise typer.Exit(2) from None


@app.command("scaling")
def bench_scaling(
    model: Annotated[str, typer.Option(help="A variant of Phi-3.")] = "phi-3-mini-128k-instruct",
    gpu: Annotated[str, typer.Option(help="The GPU of each replica, as docs/sizing.md names it.")] = "A100 80 GB",
    max_replicas: Annotated[int, typer.Option(min=1, help="Replicas at most.")] = 12,
    arrivals: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="A trace with TIMESTAMP, ContextTokens and GeneratedTokens; without it, a day is drawn.",
        ),
    ] = None,
    requests: Annotated[int, typer.Option(min=1, help="Requests of the day that is drawn.")] = 1_000_000,
    seed: Annotated[int, typer.Option(help="Seed of the day and of the routing.")] = 0,
    load_s: Annotated[float, typer.Option(min=0, help="Seconds until a replica has its weights.")] = 60,
    node_start_s: Annotated[float, typer.Option(min=0, help="Seconds until a new node runs.")] = 240,
    as_json: AsJson = False,
    svg: Svg = None,
) -> None:
    """Replay a day of requests in virtual time with several policies of autoscaling; nothing is served."""
    from phi3_serve.bench import scaling  # Ray takes seconds to import
    from phi3_serve.bench.gpus import GPUS

    _one_of("--gpu", gpu, tuple(one.name for one in GPUS))
    settings = scaling.Settings(model, gpu, max_replicas, arrivals, requests, seed, load_s, node_start_s)
    try:
        scaling.run(settings, Output(as_json, svg))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _shape(given: str) -> str:
    from phi3_serve.bench.shapes import sizes_of

    try:
        sizes_of(given)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--shape") from None
    return given


def _kv_cache_dtypes(given: str, device: str) -> tuple["KvCacheDtype", ...]:
    import torch  # takes seconds to import

    from phi3_serve.engine.device import compute_capability
    from phi3_serve.engine.kernels.kv_cache import EIGHT_BITS
    from phi3_serve.engine.precision import problem_of_kv_cache_dtype

    allowed: dict[str, KvCacheDtype] = {name: name for name in ("auto", *EIGHT_BITS)}
    wanted = _one_of("--kv-cache-dtype", given, tuple(allowed))
    for name in wanted:
        if problem := problem_of_kv_cache_dtype(name, compute_capability(torch.device(device))):
            raise typer.BadParameter(f"{problem}.", param_hint="--kv-cache-dtype")
    return tuple(allowed[name] for name in wanted)


def _counts(option: str, given: str) -> tuple[int, ...]:
    if not all(number.isdecimal() and int(number) > 0 for number in given.split(",")):
        raise typer.BadParameter(f"expected comma-separated positive integers, got {given!r}.", param_hint=option)
    return tuple(int(number) for number in given.split(","))


def _one_of(option: str, given: str, allowed: tuple[str, ...]) -> tuple[str, ...]:
    values = tuple(given.split(","))
    if wrong := [value for value in values if value not in allowed]:
        raise typer.BadParameter(f"{wrong[0]!r} is not one of {', '.join(allowed)}.", param_hint=option)
    return values
