import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from phi3_serve import __version__
from phi3_serve.cli import app

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
    assert (result.exit_code, result.stderr) == (2, f"{tmp_path}/gone: no such checkpoint directory\n")


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
