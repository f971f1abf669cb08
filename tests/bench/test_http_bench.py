"""The benchmark of a running server, end to end over a real socket."""

import json
from pathlib import Path

from typer.testing import CliRunner

from phi3_serve.cli import app
from tests.serving.cluster import free_port

RUN = CliRunner()


def test_both_endpoints_are_measured(server_url: str) -> None:
    given = ["--url", server_url, "--model", "tested", "--concurrency", "1,3", "--new-tokens", "12", "--rounds", "2"]
    result = RUN.invoke(app, ["bench", "http", *given, "--json"])
    assert result.exit_code == 0, result.output
    lines = json.loads(result.stdout)["lines"]
    assert [(line["endpoint"], line["concurrency"], line["answers"]) for line in lines] == [
        ("/chat", 1, 2),
        ("/chat", 3, 6),
        ("/v1/chat/completions", 1, 2),
        ("/v1/chat/completions", 3, 6),
    ]
    for line in lines:
        assert line["tokens"] == 12
        assert 0 < line["first_token_ms"] < 2 * 12_000 / line["stream_tokens_per_s"]  # medians, of different answers
        assert line["all_tokens_per_s"] > 0
    table = RUN.invoke(app, ["bench", "http", *given])
    assert "First token, ms" in table.stdout


def test_the_engine_alone_takes_part(server_url: str, checkpoint: Path) -> None:
    given = ["--url", server_url, "--model", "tested", "--concurrency", "1,2", "--new-tokens", "12", "--rounds", "1"]
    result = RUN.invoke(app, ["bench", "http", *given, "--engine", str(checkpoint), "--json"])
    assert result.exit_code == 0, result.output
    lines = json.loads(result.stdout)["lines"]
    assert [line["endpoint"] for line in lines] == ["the engine alone"] * 2 + ["/chat"] * 2 + [
        "/v1/chat/completions"
    ] * 2
    assert {line["tokens"] for line in lines} == {12}


def test_a_refusal_and_a_server_that_is_not_there(server_url: str) -> None:
    refused = RUN.invoke(app, ["bench", "http", "--url", server_url, "--model", "nobody", "--rounds", "1"])
    assert refused.exit_code == 2
    assert "Model nobody is not served here" in refused.stderr
    absent = RUN.invoke(app, ["bench", "http", "--url", f"http://127.0.0.1:{free_port()}", "--rounds", "1"])
    assert absent.exit_code == 2
    assert "cannot be reached" in absent.stderr
