"""The console script ``phi3-serve``."""

import contextlib
import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import typer

from phi3_serve import __version__
from phi3_serve.bench.cli import app as bench
from phi3_serve.config.api_keys import problem_of_key_name
from phi3_serve.config.app import AppConfig
from phi3_serve.errors import Phi3ServeError
from phi3_serve.options import DEFAULT_URL, AsJson, Key, Svg, Url

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
    host: Annotated[str | None, typer.Option(help="The address to listen on, instead of the config's.")] = None,
    port: Annotated[int | None, typer.Option(help="The port, instead of the config's.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show Ray's log in the terminal, not in a file.")] = False,
) -> None:
    """Check CONFIG strictly, then serve it in the foreground. Ctrl-C ends the server."""
    from phi3_serve.launch import private_directory
    from phi3_serve.launch import proxy as proxies  # Ray takes two seconds to import
    from phi3_serve.launch.up import check, run_in_foreground

    chosen = proxy or proxies.default()
    try:
        file = check(config, chosen, host=host, port=port)
        directory = private_directory.of_server(file.port)
        typer.echo(_what_starts(file.app), err=True)
        if not verbose:
            typer.echo(f"Log: {directory}/", err=True)
        run_in_foreground(file, directory, chosen, is_verbose=verbose)
    except Phi3ServeError as error:
        typer.echo(error.message, err=True)
        raise typer.Exit(2) from None


def _what_starts(config: AppConfig) -> str:
    now = [model.served_name for model in config.models if model.min_replicas]
    later = [model.served_name for model in config.models if not model.min_replicas]
    starting = f"Starting {', '.join(now) or 'without a model'}."
    return f"{starting} On request: {', '.join(later)}." if later else starting


@app.command()
def chat(
    question: Annotated[list[str] | None, typer.Argument(help="Asked once; without it a conversation begins.")] = None,
    url: Url = DEFAULT_URL,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="The model to ask; by default the first that is ready.")
    ] = None,
    system: Annotated[str | None, typer.Option("--system", "-s", help="The system prompt.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Short for --set temperature=...")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A generate parameter; may be repeated.")
    ] = None,
    by_line: Annotated[
        bool, typer.Option("--lines", help="Each line of standard input is a message or a command of a conversation.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the tokens per second of each answer.")] = False,
    api_key: Key = None,
) -> None:
    """Talk to a running server: at a prompt, or about one QUESTION.

    What comes from a pipe is put before the QUESTION. Standard output gets the
    answer only. Exit codes: 1 refused or failed, 2 wrong command line, 3 the
    server is not there, full or not ready, 130 Ctrl-C.
    """
    from phi3_serve.terminal import chat as terminal

    if question is not None and by_line:
        raise typer.BadParameter("--lines takes its messages from standard input, and no QUESTION.")
    of_temperature = [] if temperature is None else [f"temperature={temperature}"]
    options = terminal.Options(
        url=url,
        api_key=api_key,
        question=None if question is None else " ".join(question),
        model=model,
        system=system,
        settings=[*of_temperature, *(settings or [])],
        by_line=by_line,
        is_verbose=verbose,
    )
    if code := terminal.chat(options):
        raise typer.Exit(code)


@app.command()
def compare(
    question: Annotated[list[str], typer.Argument(help="What each of them is asked.")],
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--with", metavar='"NAME=VALUE ..."', help="The generate parameters of one column; may be repeated."
        ),
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="A model to ask; may be repeated. By default those that are ready."),
    ] = None,
    system: Annotated[str | None, typer.Option("--system", "-s", help="The system prompt.")] = None,
    svg: Svg = None,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Ask one QUESTION under several settings or models, and show the answers side by side.

    Exit codes are those of chat; the highest if several fail.
    """
    from phi3_serve.terminal import comparison

    options = comparison.Options(
        url=url,
        api_key=api_key,
        question=" ".join(question),
        models=models or (),
        settings=settings or (),
        system=system,
        as_json=as_json,
        svg=svg,
    )
    if code := comparison.compare(options):
        raise typer.Exit(code)


@app.command()
def batch(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Requests, one a line, in OpenAI's batch format.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Answers, one a line; what it has is not asked again.")],
    url: Url = DEFAULT_URL,
    serve: Annotated[
        Path | None,
        typer.Option(metavar="CONFIG", help="A Serve config: if no server listens there, one runs for this batch."),
    ] = None,
    most_at_once: Annotated[
        int,
        typer.Option("--at-once", min=1, max=4096, help="Requests in flight at most; fewer if the server has no room."),
    ] = 256,
    api_key: Key = None,
) -> None:
    """Answer the requests of a file. The same command again goes on after an end.

    A running server answers them, or one that --serve starts and ends. The
    command exits with 0 if every request was answered, with 1 if some got an
    error as their answer, with 2 if it could not finish, and with 130 after
    Ctrl-C.
    """
    from phi3_serve.batch_file import BatchFile
    from phi3_serve.launch.own_server import server_at

    file = BatchFile(source, target, most_at_once=most_at_once, api_key=api_key)
    try:
        file.check()
        with server_at(url, serve) as found:
            file.run(found)
    except Phi3ServeError as error:
        typer.echo(error.message, err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo("Stopped. The same command goes on from here.", err=True)
        raise typer.Exit(130) from None
    if file.num_errors:
        requests = "1 request" if file.num_errors == 1 else f"{file.num_errors} requests"
        typer.echo(f"{requests} got an error as the answer, which is in {target}.", err=True)
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
    if name is not None and (problem := problem_of_key_name(name)):
        raise typer.BadParameter(f"{problem}.", param_hint="--name")
    typer.echo(f"The key, for those who ask; it is stored nowhere:\n\n    {made}\n")
    typer.echo("Its hash, for `args` of the Serve config, or for `user_config` of the deployment `ingress`:\n")
    if name is None:
        typer.echo(f"    auth:\n      key_hashes: [{hash_of(made)}]")
    else:
        typer.echo(f"    auth:\n      keys:\n        - name: {name}\n          hash: {hash_of(made)}")


@app.command()
def models(as_json: AsJson = False) -> None:
    """List the catalogue: what each variant needs, and with which settings this machine can serve it."""
    from phi3_serve.terminal.catalogue_table import print_catalogue, this_machine

    print_catalogue(this_machine(), as_json=as_json)


@app.command()
def fetch(
    to: Annotated[Path, typer.Option(metavar="DIR", help="Each model and each adapter gets a directory in it.")],
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL]...", help="Names of the catalogue.", show_default=False)
    ] = None,
    adapters: Annotated[
        list[str] | None,
        typer.Option("--adapter", metavar="REPOSITORY@COMMIT", help="An adapter of the Hub; may be repeated."),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Download nothing; compare what is there with its own fetched.json.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Download the weights of variants at their pinned revision, and adapters; compare every file with its hash.

    The same command continues an unfinished download and keeps what is right.
    Exit codes: 1 failed, 2 wrong command line, 3 the Hub does not answer, the
    disk is full or another fetch is running; the same command may succeed later.
    """
    from phi3_serve.fetch import fetch as fetching  # imports torch
    from phi3_serve.fetch.wanted import adapters_named, variants_named
    from phi3_serve.observability.progress import human_bytes
    from phi3_serve.terminal.exit_codes import USAGE

    try:
        wanted = [*variants_named(names or ()), *adapters_named(adapters or ())]
        if not wanted:
            raise Phi3ServeError("Name a MODEL or an --adapter.")
    except Phi3ServeError as error:
        typer.echo(error.message, err=True)
        raise typer.Exit(USAGE) from None
    get = fetching.verify if verify else fetching.fetch
    with _progress_and_exit_codes("Stopped. The same command goes on from here."):
        fetched = [get(one, to) for one in wanted]
    if as_json:
        typer.echo(json.dumps([model.as_json() for model in fetched], indent=1))
        return
    for model in fetched:
        what = f"{len(model.files)} files, {human_bytes(model.total_bytes)}, equal to their hashes"
        typer.echo(f"{model.wanted.name}: {what}; {len(model.downloaded)} of them were downloaded now")
        typer.echo(f"    source: {model.directory}")


@contextlib.contextmanager
def _progress_and_exit_codes(when_stopped: str) -> Iterator[None]:
    """Show the progress of work on weights, and end with the exit code of its error."""
    from phi3_serve.errors import AlreadyFetching, MemoryFull, SourceUnreachable, StorageFull
    from phi3_serve.observability.progress import told_to
    from phi3_serve.terminal.exit_codes import FAILED, INTERRUPTED, NOT_NOW

    try:
        with told_to(lambda line: typer.echo(line, err=True)):
            yield
    except Phi3ServeError as error:
        typer.echo(error.message, err=True)
        later = isinstance(error, AlreadyFetching | MemoryFull | SourceUnreachable | StorageFull)
        raise typer.Exit(NOT_NOW if later else FAILED) from None
    except KeyboardInterrupt:
        typer.echo(when_stopped, err=True)
        raise typer.Exit(INTERRUPTED) from None


@app.command()
def quantize(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A name of the catalogue, a directory, or a repository of the Hub.")
    ],
    to: Annotated[Path, typer.Option(metavar="DIR", help="The new directory.")],
    quantization: Annotated[
        Literal["int8", "int4", "fp8"], typer.Option(help="What the weights of linear layers are stored in.")
    ],
    revision: Annotated[str | None, typer.Option(help="A branch, tag or commit of a repository.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a copy of MODEL with fewer bits, as a server would round it at each load.

    The copy takes a half (int8, fp8) or a third (int4) of the disk. It has the
    format of the library compressed-tensors. Exit codes: 1 failed, 2 wrong
    command line, 3 the Hub does not answer, or memory or disk is full; the same
    command may succeed later.
    """
    from phi3_serve.catalogue import VARIANTS, is_local, variant
    from phi3_serve.engine import snapshot
    from phi3_serve.engine.quantized_copy import NO_COPY_OF_GGUF, write_quantized_copy  # imports torch
    from phi3_serve.errors import did_you_mean
    from phi3_serve.observability.progress import human_bytes
    from phi3_serve.terminal.exit_codes import USAGE

    of_catalogue = variant(model)
    source = model if of_catalogue is None else of_catalogue.source
    if of_catalogue is not None:
        revision = revision or of_catalogue.revision
    elif is_local(model) and not Path(model).expanduser().exists():
        hint = did_you_mean(
            model,
            [one.name for one in VARIANTS],
            "; it must be a name of the catalogue, a directory, or OWNER/REPOSITORY",
        )
        typer.echo(f"MODEL: there is no `{model}`{hint}", err=True)
        raise typer.Exit(USAGE)
    with _progress_and_exit_codes("Stopped. The same command begins again."):
        directory = snapshot.fetch(model, source, revision, of_gguf=NO_COPY_OF_GGUF)
        made = write_quantized_copy(model, directory, to, quantization)
    if as_json:
        typer.echo(json.dumps(made.as_json(), indent=1))
        return
    sizes = f"{human_bytes(made.num_bytes)} instead of {human_bytes(made.source_bytes)}"
    typer.echo(f"{model}: {sizes} of weights")
    typer.echo(f"    source: {made.directory}")


@app.command()
def ps(url: Url = DEFAULT_URL, api_key: Key = None, as_json: AsJson = False) -> None:
    """List the models of a running server: state, requests, memory, device."""
    from phi3_serve.client import Client
    from phi3_serve.terminal.exit_codes import exit_code_of
    from phi3_serve.terminal.server_table import print_models

    try:
        print_models(Client(url, api_key), as_json=as_json)
    except Phi3ServeError as error:
        typer.echo(error.message, err=True)
        raise typer.Exit(exit_code_of(error)) from None
