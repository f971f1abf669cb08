"""The console script ``phi3-serve``."""

import json
import secrets
import sys
from pathlib import Path
from typing import Annotated, Literal

import psutil
import typer
from rich.console import Console
from rich.table import Table

from phi3_serve import __version__, catalogue
from phi3_serve.bench.cli import app as bench
from phi3_serve.catalogue import Variant
from phi3_serve.errors import Phi3ServeError
from phi3_serve.observability.progress import human_bytes

app = typer.Typer(help="Serve Microsoft's Phi-3 models with Ray Serve.", no_args_is_help=True, add_completion=False)


@app.callback(invoke_without_command=True)
def main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Serve Microsoft's Phi-3 models with Ray Serve."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


app.add_typer(bench, name="bench")


@app.command()
def up(
    config: Annotated[Path, typer.Argument(help="A Serve config file.")] = Path("serve_config.yaml"),
    proxy: Annotated[
        Literal["haproxy", "python"] | None,
        typer.Option(help="The HTTP proxy; by default HAProxy if it is installed."),
    ] = None,
) -> None:
    """Check CONFIG strictly, then run it in the foreground with `serve run`."""
    from phi3_serve.launch import proxy as proxies  # Ray takes two seconds to import
    from phi3_serve.launch.up import check, run_in_foreground

    chosen = proxy or proxies.default()
    try:
        file = check(config, chosen)
        models = ", ".join(m.served_name for m in file.app.models)
        typer.echo(f"Starting Ray. Models: {models}; the default is {file.app.default_model_name}.", err=True)
        run_in_foreground(config, file, chosen)
    except Phi3ServeError as error:
        typer.echo(error.message, err=True)
        raise typer.Exit(2) from None


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
def batch(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Requests, one a line, in OpenAI's batch format.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Answers, one a line; what it has is not asked again.")],
    url: Annotated[str, typer.Option(help="Where the server listens.")] = "http://127.0.0.1:8000",
    most_at_once: Annotated[
        int,
        typer.Option("--at-once", min=1, max=4096, help="Requests in flight at most; fewer if the server has no room."),
    ] = 256,
    api_key: Annotated[
        str | None, typer.Option(envvar="PHI3_SERVE_API_KEY", help="Where the server asks for one.")
    ] = None,
) -> None:
    """Answer the requests of a file with a running server. The same command again goes on after an end.

    It exits with 0 if every request was answered, with 1 if some got an error as their answer, with 2 if it could not
    finish, and with 130 after Ctrl-C.
    """
    from phi3_serve.batch_file import BatchFile

    file = BatchFile(url, source, target, most_at_once=most_at_once, api_key=api_key)
    try:
        file.run()
    except Phi3ServeError as error:
        typer.echo(error.message, err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo("Stopped. The same command goes on from here.", err=True)
        raise typer.Exit(130) from None
    if file.num_errors:
        typer.echo(f"{file.num_errors} requests got an error as their answer; {target} has them.", err=True)
        raise typer.Exit(1)


@app.command()
def key(
    name: Annotated[
        str | None, typer.Option(help="Its name in metrics and errors; scopes and limits need a name.")
    ] = None,
) -> None:
    """Make an API key, and the lines of the config that accept it."""
    from phi3_serve.api.keys import hash_of

    made = secrets.token_urlsafe(32)
    typer.echo(f"The key, for those who ask; it is stored nowhere:\n\n    {made}\n")
    typer.echo("Its hash, for `args` of the Serve config, or for `user_config` of the deployment `ingress`:\n")
    if name is None:
        typer.echo(f"    auth:\n      key_hashes: [{hash_of(made)}]")
    else:
        typer.echo(f"    auth:\n      keys:\n        - name: {name}\n          hash: {hash_of(made)}")


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
    needed = {quantization: variant.memory_needed(dtype, quantization) for quantization in catalogue.QUANTIZATIONS}
    allowed = catalogue.QUANTIZATIONS if device == "CPU" else (catalogue.NO_QUANTIZATION,)
    return {
        "name": variant.name,
        "context_length": variant.context_length,
        "parameters": variant.num_parameters,
        "kv_bytes_per_token": variant.kv_bytes_per_token(dtype),
        "memory_needed_bytes": needed[catalogue.NO_QUANTIZATION],
        "memory_needed_bytes_quantized": {name: needed[name] for name in catalogue.QUANTIZED_BYTES},
        "sliding_window": variant.sliding_window,
        "rope": variant.rope,
        "source": "embedded" if variant.revision is None else variant.source,
        "revision": variant.revision,
        "fits": needed[catalogue.NO_QUANTIZATION] <= memory,
        "fits_as": next((quantization for quantization in allowed if needed[quantization] <= memory), None),
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
            "yes" if row["fits"] else f"as {row['fits_as']}" if row["fits_as"] else "no",
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
