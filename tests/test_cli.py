import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from phi3_serve import __version__
from phi3_serve.cli import app
from phi3_serve.launch.proxy import free_port
from phi3_serve.launch.up import check

RUN = CliRunner()


def test_version() -> None:
    assert RUN.invoke(app, ["--version"]).output.strip() == __version__


def test_python_dash_m_is_the_same_command() -> None:
    done = subprocess.run([sys.executable, "-m", "phi3_serve", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == __version__


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("{models: [{name: phi-3-tinny}]}", "args.models[0]: `phi-3-tinny` is not in the catalogue; did you mean `phi-3-tiny`?"),
        ("{default_modle: x}", "args: unknown key `default_modle`; did you mean `default_model`?"),
    ],
)  # fmt: skip
def test_up_refuses_a_wrong_config_before_ray_starts(tmp_path: Path, args: str, message: str) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"applications: [{{import_path: 'phi3_serve.serving.app:build_app', args: {args}}}]")
    result = RUN.invoke(app, ["up", str(config)])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"{config}: {message}")
    assert len(result.stderr.splitlines()) == 1


def test_up_refuses_more_cores_than_there_are_before_ray_starts(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    models = [{"name": f"m{number}", "source": "a/b", "device": "cpu", "num_cpus": 1_000} for number in range(4)]
    application = {"import_path": "phi3_serve.serving.app:build_app", "args": {"models": models}}
    config.write_text(json.dumps({"applications": [application]}))
    result = RUN.invoke(app, ["up", str(config)])
    assert result.exit_code == 2
    assert "4000 CPU cores are reserved at the start (m0 1000, " in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_up_refuses_a_directory_of_batches_that_cannot_be_written(tmp_path: Path) -> None:
    config, taken = tmp_path / "config.yaml", tmp_path / "taken"
    taken.write_text("")
    args = {"models": [{"name": "phi-3-tiny", "num_cpus": 0.5}], "batches": {"directory": f"{taken}/in"}}
    application = {"import_path": "phi3_serve.serving.app:build_app", "args": args}
    config.write_text(json.dumps({"applications": [application]}))
    result = RUN.invoke(app, ["up", str(config)])
    assert result.exit_code == 2
    assert result.stderr == f"args.batches.directory: {taken}/in cannot be written: Not a directory\n"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            "{name: phi-3-tiny, quantization: fp8}",
            "quantization is fp8, which a CPU does not have; it needs a GPU of compute capability 8.9 or higher, "
            "otherwise allowed are none, int8, int4 and auto",
        ),
        (
            "{name: mine, source: a/b, device: cpu, kv_cache_dtype: fp8}",
            "kv_cache_dtype is fp8, which a CPU does not have; allowed are auto and int8",
        ),
    ],
)
def test_up_refuses_what_a_cpu_does_not_have_before_ray_starts(tmp_path: Path, model: str, message: str) -> None:
    config = tmp_path / "config.yaml"
    args = f"{{models: [{{name: phi-3-mini-4k-instruct, min_replicas: 0, quantization: fp8}}, {model}]}}"
    config.write_text(f"applications: [{{import_path: 'phi3_serve.serving.app:build_app', args: {args}}}]")
    result = RUN.invoke(app, ["up", str(config)])
    assert (result.exit_code, result.stderr) == (2, f"{config}: args.models[1]: {message}\n")


def test_up_refuses_traces_that_nothing_can_send(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "config.yaml"
    args = "{models: [{name: phi-3-tiny, num_cpus: 0.5}], traces: {endpoint: 'http://127.0.0.1:4318'}}"
    config.write_text(f"applications: [{{import_path: 'phi3_serve.serving.app:build_app', args: {args}}}]")
    assert check(config, "python", port=free_port()).app.traces.endpoint
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)  # not installed
    result = RUN.invoke(app, ["up", str(config)])
    message = "args.traces.endpoint: needs `pip install 'phi3-serve[otel]'`"
    assert (result.exit_code, result.stderr) == (2, f"{config}: {message}\n")


def test_an_api_key_that_no_header_can_carry_is_not_shown() -> None:
    result = RUN.invoke(app, ["ps"], env={"PHI3_SERVE_API_KEY": "secret\nkey"})
    assert result.exit_code == 2
    assert "line break" in result.stderr
    assert "secret" not in result.stderr


def test_up_refuses_tls_behind_haproxy(tmp_path: Path) -> None:
    certificate, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    make = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-subj",
        "/CN=x",
        "-keyout",
        key,
        "-out",
        certificate,
    ]
    subprocess.run(make, check=True, capture_output=True)
    config = tmp_path / "config.yaml"
    config.write_text(
        f"http_options: {{ssl_certfile: {certificate}, ssl_keyfile: {key}}}\n"
        "applications: [{import_path: 'phi3_serve.serving.app:build_app'}]"
    )
    result = RUN.invoke(app, ["up", str(config), "--proxy", "haproxy"])
    assert (result.exit_code, result.stderr) == (
        2,
        f"{config}: http_options.ssl_certfile: Ray's HAProxy has no TLS; use --proxy python\n",
    )


def test_up_refuses_a_missing_directory_before_ray_starts(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    args = f"{{models: [{{name: mine, source: {tmp_path}/gone}}]}}"
    config.write_text(f"applications: [{{import_path: 'phi3_serve.serving.app:build_app', args: {args}}}]")
    result = RUN.invoke(app, ["up", str(config)])
    assert (result.exit_code, result.stderr) == (
        2,
        f"{config}: args.models[0].source: {tmp_path}/gone: no such checkpoint directory\n",
    )


def test_up_refuses_a_missing_adapter_only_if_it_applies_always(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    adapter = {"name": "tone", "source": f"{tmp_path}/gone"}

    def write(**given: bool) -> None:
        args = {"models": [{"name": "phi-3-tiny", "adapters": [{**adapter, **given}]}]}
        application = {"import_path": "phi3_serve.serving.app:build_app", "args": args}
        config.write_text(json.dumps({"applications": [application]}))

    write()
    assert check(config, "python", port=free_port()).app.models[0].offered_adapters
    write(always=True)
    result = RUN.invoke(app, ["up", str(config)])
    assert result.exit_code == 2
    place = f"{config}: args.models[0].adapters[0].source"
    assert result.stderr.startswith(f"{place}: {tmp_path}/gone/adapter_config.json: ")


def test_up_refuses_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = tmp_path / "config.yaml"
        config.write_text(
            f"http_options: {{host: 127.0.0.1, port: {port}}}\n"
            "applications: [{import_path: 'phi3_serve.serving.app:build_app', args: {models: [{name: phi-3-tiny}]}}]"
        )
        result = RUN.invoke(app, ["up", str(config)])
    assert (result.exit_code, result.stderr) == (
        2,
        f"127.0.0.1:{port}: cannot be listened on: Address already in use. Choose another with --port or http_options.port.\n",
    )


def test_up_without_a_config() -> None:
    result = RUN.invoke(app, ["up", "gone.yaml"])
    assert (result.exit_code, result.stderr) == (2, "gone.yaml: No such file or directory\n")
