"""The commands ``phi3-serve bench ...``."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from phi3_serve import catalogue
from phi3_serve.bench.output import Output
from phi3_serve.errors import Phi3ServeError

NO_PEERS = "none"
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _writable(file: Path | None) -> Path | None:
    """``file``, if it can be written: a wrong name is told before minutes of work."""
    if file is not None and (file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK)):
        raise typer.BadParameter(f"{file} cannot be written.")
    return file


Svg = Annotated[
    Path | None,
    typer.Option("--svg", metavar="FILE", callback=_writable, help="Draw the figures as bars into an SVG file."),
]

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
    quantization: Annotated[
        str, typer.Option(help="none, int8, int4: how the weights are rounded; several with commas.")
    ] = "none",
    peer_dtype: Annotated[str, typer.Option(help="The type in which peers compute; auto: the same.")] = "auto",
    threads: Annotated[int, typer.Option(min=0, help="Threads of torch; 0: torch decides.")] = 0,
    as_json: AsJson = False,
    svg: Svg = None,
) -> None:
    """Run the engine alone, without Ray, on random weights of a named shape."""
    from phi3_serve.bench import engine, llamacpp  # torch takes seconds to import
    from phi3_serve.bench.workload import KINDS

    if engine.VLLM in peers.split(",") and find_spec("vllm") is None:
        raise typer.BadParameter("vllm is not installed beside phi3-serve.", param_hint="--peers")
    if engine.LLAMACPP in peers.split(","):
        if not llamacpp.is_installed():
            raise typer.BadParameter(f"llamacpp needs the package {llamacpp.PACKAGE}.", param_hint="--peers")
        if device != "cpu":
            raise typer.BadParameter("llamacpp is measured on a CPU only.", param_hint="--peers")
    settings = engine.Settings(
        shape=_shape(shape),
        device=_one_of("--device", device, ("cpu", "cuda"))[0],
        dtype=_one_of("--dtype", dtype, ("float32", "bfloat16", "float16"))[0],
        quantization=_one_of("--quantization", quantization, catalogue.QUANTIZATIONS),
        peer_dtype=_one_of("--peer-dtype", peer_dtype, ("auto", "float32", "bfloat16", "float16"))[0],
        concurrency=_counts("--concurrency", concurrency),
        workloads=_one_of("--workload", workload, KINDS),
        peers=() if peers in ("", NO_PEERS) else _one_of("--peers", peers, engine.PEERS),
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        requests=requests,
        rounds=rounds,
        threads=threads,
    )
    engine.run(settings, Output(as_json, svg))


@app.command("http")
def bench_http(
    url: Annotated[str, typer.Option(help="Where the server listens.")] = "http://127.0.0.1:8000",
    model: Annotated[str, typer.Option(help="The model to ask.")] = "phi-3-tiny",
    concurrency: Annotated[str, typer.Option(help="Streams at once; several with commas.")] = "1,16",
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer, at most.")] = 128,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds after a first one that warms up.")] = 5,
    engine: Annotated[
        Path | None,
        typer.Option(help="A checkpoint that the engine also runs alone; `embedded`: phi-3-tiny."),
    ] = None,
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
        http.run(settings, Output(as_json, svg))
    except Phi3ServeError as error:
        typer.echo(error.message, err=True)
        raise typer.Exit(2) from None


@app.command("crowd", hidden=True)  # the earlier name
@app.command("overload")
def bench_overload(
    url: Annotated[str, typer.Option(help="Where the server listens.")] = "http://127.0.0.1:8000",
    model: Annotated[str, typer.Option(help="The model to ask.")] = "phi-3-tiny",
    clients: Annotated[str, typer.Option(help="Clients at once; several with commas.")] = "1000",
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer, at most.")] = 64,
    seconds: Annotated[float, typer.Option(min=0, help="Seconds for which they continue; 0: one request each.")] = 0,
    as_json: AsJson = False,
    svg: Svg = None,
) -> None:
    """Send more requests than a running server can take: how many are answered and refused, and how fast."""
    from phi3_serve.bench import overload

    counts = _counts("--clients", clients)
    overload.run(overload.Settings(url.rstrip("/"), model, counts, new_tokens, seconds), Output(as_json, svg))


@app.command("turns", hidden=True)  # the earlier name
@app.command("multi-turn")
def bench_multi_turn(
    url: Annotated[str, typer.Option(help="Where the server listens.")] = "http://127.0.0.1:8000",
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
    as_json: AsJson = False,
    svg: Svg = None,
) -> None:
    """Hold conversations with a running server: the gain of a prefix that is already in memory."""
    from phi3_serve.bench import multi_turn

    settings = multi_turn.Settings(url.rstrip("/"), model, conversations, turns, words, new_tokens, rounds, seed)
    try:
        multi_turn.run(settings, Output(as_json, svg))
    except Phi3ServeError as error:
        typer.echo(error.message, err=True)
        raise typer.Exit(2) from None


def _shape(given: str) -> str:
    from phi3_serve.bench.shapes import sizes_of

    try:
        sizes_of(given)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--shape") from None
    return given


def _counts(option: str, given: str) -> tuple[int, ...]:
    if not all(number.isdecimal() and int(number) > 0 for number in given.split(",")):
        raise typer.BadParameter(f"expected comma-separated positive integers, got {given!r}.", param_hint=option)
    return tuple(int(number) for number in given.split(","))


def _one_of(option: str, given: str, allowed: tuple[str, ...]) -> tuple[str, ...]:
    values = tuple(given.split(","))
    if wrong := [value for value in values if value not in allowed]:
        raise typer.BadParameter(f"{wrong[0]!r} is not one of {', '.join(allowed)}.", param_hint=option)
    return values
