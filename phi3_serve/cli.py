"""The console script ``phi3-serve``."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import psutil
import typer
from rich.console import Console
from rich.table import Table

from phi3_serve import __version__, catalogue
from phi3_serve.catalogue import Variant
from phi3_serve.config import AppConfig, is_local
from phi3_serve.engine.checkpoint import open_checkpoint
from phi3_serve.errors import Phi3ServeError
from phi3_serve.observability.progress import human_bytes

app = typer.Typer(help="Serve Microsoft's Phi-3 models with Ray Serve.", no_args_is_help=True, add_completion=False)


@app.callback(invoke_without_command=True)
def main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Serve Microsoft's Phi-3 models with Ray Serve."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


bench = typer.Typer(help="Measure speed.", no_args_is_help=True)
app.add_typer(bench, name="bench")


@bench.command("engine")
def bench_engine(
    shape: Annotated[str, typer.Option(help="small, mini or medium; probe is for tests.")] = "small",
    concurrency: Annotated[str, typer.Option(help="Requests in flight; several with commas.")] = "1,16",
    workload: Annotated[str, typer.Option(help="plain, sampled, beams, exotic; several with commas.")] = "plain",
    peers: Annotated[
        str, typer.Option(help="generate, batching, vllm (if installed); several with commas, or none.")
    ] = "",
    prompt_tokens: Annotated[int, typer.Option(min=8, help="Tokens of a prompt.")] = 32,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 64,
    requests: Annotated[int, typer.Option(min=0, help="Requests a run; 0: twice the concurrency.")] = 0,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; medians are shown.")] = 3,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="The type of the weights.")] = "bfloat16",
    peer_dtype: Annotated[str, typer.Option(help="The type peers compute in; auto: as we do.")] = "auto",
    threads: Annotated[int, typer.Option(min=0, help="Threads of torch; 0: as many as it takes.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Run the engine alone, without Ray, on random weights of a named shape."""
    from phi3_serve.bench import engine  # torch takes seconds to import
    from phi3_serve.bench.shapes import SHAPES
    from phi3_serve.bench.workload import KINDS

    if engine.VLLM in peers.split(",") and find_spec("vllm") is None:
        raise typer.BadParameter("vllm is not installed beside phi3-serve.", param_hint="--peers")
    settings = engine.Settings(
        shape=_one_of("--shape", shape, tuple(SHAPES))[0],
        device=_one_of("--device", device, ("cpu", "cuda"))[0],
        dtype=_one_of("--dtype", dtype, ("float32", "bfloat16", "float16"))[0],
        peer_dtype=_one_of("--peer-dtype", peer_dtype, ("auto", "float32", "bfloat16", "float16"))[0],
        concurrency=_counts("--concurrency", concurrency),
        workloads=_one_of("--workload", workload, KINDS),
        peers=_one_of("--peers", peers, engine.PEERS) if peers else (),
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        requests=requests,
        rounds=rounds,
        threads=threads,
    )
    engine.run(settings, as_json=as_json)


@bench.command("http")
def bench_http(
    url: Annotated[str, typer.Option(help="Where the server listens.")] = "http://127.0.0.1:8000",
    model: Annotated[str, typer.Option(help="The model to ask.")] = "phi-3-tiny",
    concurrency: Annotated[str, typer.Option(help="Streams at once; several with commas.")] = "1,16",
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer, at most.")] = 128,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds after the first, which warms up.")] = 5,
    engine: Annotated[
        Path | None, typer.Option(help="A checkpoint: the engine alone over it takes part. `embedded`: phi-3-tiny's.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
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
        http.run(settings, as_json=as_json)
    except Phi3ServeError as error:
        typer.echo(error.message, err=True)
        raise typer.Exit(2) from None


@bench.command("crowd")
def bench_crowd(
    url: Annotated[str, typer.Option(help="Where the server listens.")] = "http://127.0.0.1:8000",
    model: Annotated[str, typer.Option(help="The model to ask.")] = "phi-3-tiny",
    clients: Annotated[str, typer.Option(help="Clients at once; several with commas.")] = "1000",
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer, at most.")] = 64,
    seconds: Annotated[float, typer.Option(min=0, help="How long they go on asking; 0: each asks once.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Ask a running server for more than it can do: who is answered, who is refused, how fast."""
    from phi3_serve.bench import overload as crowd

    counts = _counts("--clients", clients)
    crowd.run(crowd.Settings(url.rstrip("/"), model, counts, new_tokens, seconds), as_json=as_json)


@bench.command("turns")
def bench_turns(
    url: Annotated[str, typer.Option(help="Where the server listens.")] = "http://127.0.0.1:8000",
    model: Annotated[str, typer.Option(help="The model to ask.")] = "phi-3-tiny",
    conversations: Annotated[int, typer.Option(min=1, help="Conversations at once.")] = 8,
    turns: Annotated[int, typer.Option(min=1, help="Questions in each.")] = 4,
    words: Annotated[int, typer.Option(min=1, help="Of each system prompt.")] = 800,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer, at most.")] = 16,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, each of new conversations.")] = 5,
    seed: Annotated[
        int, typer.Option(help="Of the conversations: a server may have those of another run in memory.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Hold conversations with a running server: what is gained where it has their start in memory."""
    from phi3_serve.bench import multi_turn as talks

    settings = talks.Settings(url.rstrip("/"), model, conversations, turns, words, new_tokens, rounds, seed)
    try:
        talks.run(settings, as_json=as_json)
    except Phi3ServeError as error:
        typer.echo(error.message, err=True)
        raise typer.Exit(2) from None


def _counts(option: str, given: str) -> tuple[int, ...]:
    if not all(number.isdecimal() and int(number) > 0 for number in given.split(",")):
        raise typer.BadParameter(f"{given!r} is no list of whole numbers from 1 on.", param_hint=option)
    return tuple(int(number) for number in given.split(","))


def _one_of(option: str, given: str, allowed: tuple[str, ...]) -> tuple[str, ...]:
    values = tuple(given.split(","))
    if wrong := [value for value in values if value not in allowed]:
        raise typer.BadParameter(f"{wrong[0]!r} is none of {', '.join(allowed)}.", param_hint=option)
    return values


@app.command()
def up(
    config: Annotated[Path, typer.Argument(help="A Serve config file.")] = Path("serve_config.yaml"),
    proxy: Annotated[
        Literal["haproxy", "python"] | None,
        typer.Option(help="What stands before the replicas; by default HAProxy where it is installed."),
    ] = None,
) -> None:
    """Check CONFIG strictly, then run it in the foreground with `serve run`."""
    from phi3_serve.launch import config_file  # Ray takes two seconds to import
    from phi3_serve.launch import proxy as proxies

    try:
        file = config_file.read(config)
        _check_local_checkpoints(file.app)
        _check_port_is_free(file.host, file.port)
    except Phi3ServeError as error:
        typer.echo(error.message, err=True)
        raise typer.Exit(2) from None
    models = ", ".join(m.served_name for m in file.app.models)
    typer.echo(f"Starting Ray. Models: {models}; the default is {file.app.default_model_name}.", err=True)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # A cluster of our own that Ctrl-C ends; without it Ray joins whatever cluster it last saw, even a dead one.
    os.environ.setdefault("RAY_ADDRESS", "local")
    door = proxies.environment(
        proxy or proxies.default(), port=file.port, request_timeout_s=file.app.limits.request_timeout_s
    )
    for name, value in door.items():
        os.environ.setdefault(name, value)
    # A shell that starts us in the background has SIGINT ignored, and `serve run` would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    host = "127.0.0.1" if file.host == "0.0.0.0" else file.host  # noqa: S104 - compared, not bound
    url = f"http://{host}:{file.port}{file.route_prefix}".rstrip("/")
    subprocess.run([sys.executable, "-m", "phi3_serve.launch.ready_notice", url, str(os.getpid())], check=True)  # noqa: S603
    os.execv(sys.executable, [sys.executable, "-m", "phi3_serve.launch.run", str(config)])  # noqa: S606 - no shell


def _check_port_is_free(host: str, port: int) -> None:
    """Phi3ServeError now; Ray would go on without its HTTP proxy and say so among a hundred other lines."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise Phi3ServeError(
                f"{host}:{port}: cannot be listened on: {error.strerror}. Choose another http_options.port."
            ) from None


def _check_local_checkpoints(config: AppConfig) -> None:
    """CheckpointError for a directory that a replica would fail on, before any process is started."""
    for model in config.models:
        if model.min_replicas and is_local(model.checkpoint):
            open_checkpoint(Path(model.checkpoint).expanduser())


@app.command()
def chat(
    url: Annotated[str, typer.Option(help="Where the server listens.")] = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(help="The model to ask; by default the first that is ready.")] = None,
    system: Annotated[str | None, typer.Option(help="The system prompt.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Of sampling; /set takes every generate parameter.")] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="PHI3_SERVE_API_KEY", help="Where the server asks for one.")
    ] = None,
) -> None:
    """Talk to a running server in the terminal."""
    from phi3_serve import terminal

    try:
        terminal.chat(url, model, system, {} if temperature is None else {"temperature": temperature}, api_key)
    except Phi3ServeError as error:
        typer.echo(error.message, err=True)
        raise typer.Exit(2) from None


@app.command()
def key() -> None:
    """Make an API key, and the line of the config that lets it in."""
    from phi3_serve.api.middleware.authentication import hash_of

    made = secrets.token_urlsafe(32)
    typer.echo(f"The key, for those who ask; it is stored nowhere:\n\n    {made}\n")
    typer.echo(f"Its hash, for `args` of the Serve config:\n\n    auth:\n      key_hashes: [{hash_of(made)}]")


@app.command()
def models(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the catalogue: what each variant needs, and whether it fits this machine."""
    device, memory = _device_memory()
    dtype = "bfloat16" if device == "GPU" else "float32"
    rows = [_row(variant, device, dtype, memory) for variant in catalogue.VARIANTS]
    if as_json:
        typer.echo(json.dumps({"device": device, "memory_bytes": memory, "dtype": dtype, "models": rows}, indent=2))
        return
    _print_table(rows, f"This machine: {device} with {human_bytes(memory)}, {dtype}")


def _row(variant: Variant, device: str, dtype: str, memory: int) -> dict[str, object]:
    needed = variant.memory_needed(dtype)
    return {
        "name": variant.name,
        "context_length": variant.context_length,
        "parameters": variant.num_parameters,
        "kv_bytes_per_token": variant.kv_bytes_per_token(dtype),
        "memory_needed_bytes": needed,
        "sliding_window": variant.sliding_window,
        "rope": variant.rope,
        "source": "embedded" if variant.revision is None else variant.source,
        "revision": variant.revision,
        "fits": needed <= memory,
    }


def _print_table(rows: list[dict[str, object]], title: str) -> None:
    table = Table(title=title, title_justify="left")
    for heading in (
        "Model",
        "Context",
        "Parameters",
        "KV/token",
        "Memory",
        "Window",
        "RoPE",
        "Revision",
        "Fits",
    ):
        table.add_column(heading, justify="left" if heading in ("Model", "RoPE", "Revision") else "right")
    for row in rows:
        table.add_row(
            str(row["name"]),
            f"{row['context_length']:,}",
            _human_count(int(str(row["parameters"]))),
            human_bytes(int(str(row["kv_bytes_per_token"]))),
            human_bytes(int(str(row["memory_needed_bytes"]))),
            "all" if row["sliding_window"] is None else f"{row['sliding_window']:,}",
            str(row["rope"]),
            str(row["revision"])[:7] if row["revision"] else "embedded",
            "yes" if row["fits"] else "no",
        )
    Console(width=None if sys.stdout.isatty() else 130).print(table)


def _human_count(count: int) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.2f} M"


def _device_memory() -> tuple[str, int]:
    """The device that a model would go to, and its memory in bytes."""
    import torch  # two seconds

    if torch.cuda.is_available():
        return "GPU", torch.cuda.get_device_properties(0).total_memory
    return "CPU", psutil.virtual_memory().total
