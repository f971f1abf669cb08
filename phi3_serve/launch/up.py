"""``phi3-serve up``: check a Serve config, then become the process that serves it in the foreground."""

import importlib
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import yaml

from phi3_serve.api.keys import ApiKeys
from phi3_serve.batch.directory import BatchDirectory
from phi3_serve.catalogue import is_local
from phi3_serve.config.app import AppConfig
from phi3_serve.engine.adapters.peft_config import PeftConfig
from phi3_serve.engine.precision import problem_of_kv_cache_dtype, problem_of_quantization
from phi3_serve.engine.source import open_source
from phi3_serve.errors import CheckpointError, Phi3ServeError
from phi3_serve.launch import config_file, proxy, run
from phi3_serve.launch.capacity import check_cores
from phi3_serve.launch.config_file import ConfigError, ConfigFile
from phi3_serve.serving.placement import place

_PRIVATE_CLUSTER = {
    # Whoever reaches Ray's ports can run code. Without the token nobody may.
    "RAY_AUTH_MODE": "token",
    # The address of this node is 127.0.0.1, as by default on macOS and Windows: the parts of Ray listen there only.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}


def check(path: Path, proxy_name: proxy.Proxy, *, host: str | None = None, port: int | None = None) -> ConfigFile:
    """The config at ``path``, after all checks that need no process of Ray. ``host`` and ``port`` replace its own.

    Raises:
        ConfigError: the file is missing, a key or value is wrong, a model on the CPU asks for what only a GPU has, a
            local checkpoint cannot be served, or the directory of batches cannot be written.
        KeyFileError: the file of API keys cannot be used.
        Phi3ServeError: more cores are reserved than this machine has, the port is taken, or the config asks for TLS and
            HAProxy has none.
    """
    given = {"host": host, "port": port}
    file = config_file.read(path, {name: value for name, value in given.items() if value is not None})
    if file.has_tls and proxy_name == "haproxy":
        raise ConfigError(f"{path}: http_options.ssl_certfile: Ray's HAProxy has no TLS; use --proxy python")
    _check_precision(path, file.app)
    if os.environ.get("RAY_ADDRESS", "local") == "local":
        check_cores(file.app)
        _check_directory_of_batches(file.app)
        ApiKeys(file.app.auth)  # reads their file
        _check_traces(path, file.app)
    _check_local_checkpoints(path, file.app)
    _check_port_is_free(file.host, file.port)
    return file


def run_in_foreground(file: ConfigFile, directory: Path, proxy_name: proxy.Proxy, *, is_verbose: bool) -> NoReturn:
    """Replace this process by one that serves the checked ``file``.

    Its files are in ``directory``. With ``is_verbose`` the log goes to the terminal.
    """
    _set_environment(file, proxy_name)
    config = directory / "serve_config.yaml"
    config.write_text(yaml.safe_dump(file.content, sort_keys=False), encoding="utf-8")
    log = run.TO_TERMINAL if is_verbose else str(directory)
    started_at_once = [model.served_name for model in file.app.models if model.min_replicas]
    arguments = ["-m", "phi3_serve.launch.run", str(config), _url(file), log, *started_at_once]
    os.execv(sys.executable, [sys.executable, *arguments])  # noqa: S606 - no shell


def _set_environment(file: ConfigFile, proxy_name: proxy.Proxy) -> None:
    """Set what Ray reads at its start. What the user has set stays, except for the proxy: ``--proxy`` comes first."""
    defaults = {
        "RAY_USAGE_STATS_ENABLED": "0",
        # A new cluster that Ctrl-C ends. Without it Ray joins the cluster that it last saw, even a dead one.
        "RAY_ADDRESS": "local",
        **proxy.environment(proxy_name, port=file.port, request_timeout_s=file.app.limits.request_timeout_s),
    }
    if os.environ.get("RAY_ADDRESS", "local") == "local":
        defaults |= _PRIVATE_CLUSTER
    os.environ[proxy.ENABLE_HAPROXY] = defaults[proxy.ENABLE_HAPROXY]
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def _url(file: ConfigFile) -> str:
    """Where this machine reaches the server."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(file.host, file.host)  # noqa: S104 - compared, not bound
    netloc = f"[{host}]:{file.port}" if ":" in host else f"{host}:{file.port}"
    return f"{'https' if file.has_tls else 'http'}://{netloc}{file.route_prefix}".rstrip("/")


def _check_port_is_free(host: str, port: int) -> None:
    """Phi3ServeError before the start: Ray would continue without its HTTP proxy and log one line among a hundred."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise Phi3ServeError(
                f"{host}:{port}: cannot be listened on: {error.strerror}. "
                "Choose another with --port or http_options.port."
            ) from None


def _check_precision(path: Path, config: AppConfig) -> None:
    """ConfigError for a model that runs on the CPU, whatever the cluster has, in a precision that no CPU has."""
    for number, model in enumerate(config.models):
        if place(model, cluster_has_gpu=True).device == "cpu":
            of_weights = problem_of_quantization(model.quantization, None)
            if problem := of_weights or problem_of_kv_cache_dtype(model.kv_cache_dtype, None):
                raise ConfigError(f"{path}: args.models[{number}]: {problem}")


def _check_directory_of_batches(config: AppConfig) -> None:
    """ConfigError for a directory that the ingress, which will run on this machine, cannot use."""
    if (directory := config.batches.directory) is None:
        return
    try:
        BatchDirectory(Path(directory).expanduser()).check()
    except OSError as error:
        raise ConfigError(f"args.batches.directory: {directory} cannot be written: {error.strerror}") from None


def _check_traces(path: Path, config: AppConfig) -> None:
    """ConfigError if traces are to be sent and the package that sends them is missing: no ingress would start."""
    if config.traces.endpoint is not None:
        try:
            importlib.import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
        except ImportError:
            raise ConfigError(f"{path}: args.traces.endpoint: needs `pip install 'phi3-serve[otel]'`") from None


def _check_local_checkpoints(path: Path, config: AppConfig) -> None:
    """ConfigError for a source that a replica could not load, before any process is started."""
    for number, model in enumerate(config.models):
        where = f"{path}: args.models[{number}]"
        if model.min_replicas and is_local(model.checkpoint):
            with _placed(f"{where}.source"):
                open_source(Path(model.checkpoint).expanduser(), model.file)
        for index, adapter in enumerate(model.adapters):
            if adapter.always and model.min_replicas and is_local(adapter.source):
                with _placed(f"{where}.adapters[{index}].source"):
                    PeftConfig(Path(adapter.source).expanduser())


@contextmanager
def _placed(where: str) -> Iterator[None]:
    """Say ``where`` a checkpoint is named that cannot be served."""
    try:
        yield
    except CheckpointError as error:
        raise ConfigError(f"{where}: {error.message}") from None
