"""The benchmark of a running server, end to end over a real socket."""

import asyncio
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from phi3_serve.api.app import create_app
from phi3_serve.api.keys import hash_of
from phi3_serve.bench import overload as crowd
from phi3_serve.bench import plots
from phi3_serve.cli import app
from phi3_serve.config.app import AppConfig
from phi3_serve.launch.proxy import free_port
from tests.support import LocalBackend

RUN = CliRunner()


def labels_of(svg: Path) -> list[str]:
    """The labels of the bars."""
    found = ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}text")
    return [text.text or "" for text in found if text.get("text-anchor") == "end"]


def test_both_endpoints_are_measured_and_drawn(server_url: str, tmp_path: Path) -> None:
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
        assert 0 < line["first_token_ms"] < 10 * 12_000 / line["stream_tokens_per_s"]  # medians, of different answers
        assert line["all_tokens_per_s"] > 0
    table = RUN.invoke(app, ["bench", "http", *given, "--svg", str(tmp_path / "x.svg")])
    assert "First token, ms" in table.stdout
    assert labels_of(tmp_path / "x.svg") == ["/chat", "/v1/chat/completions"] * 4


@pytest.mark.slow
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


def test_a_server_with_api_keys_is_measured(backend: LocalBackend, config: AppConfig, serve_app: Any) -> None:
    guarded = AppConfig.model_validate({**config.model_dump(), "auth": {"key_hashes": [hash_of("k")]}})
    given = ["--url", serve_app(create_app(backend, guarded)), "--model", "tested", "--new-tokens", "4", "--json"]
    for command in (
        ["http", "--concurrency", "1", "--rounds", "1"],
        ["overload", "--clients", "2"],
        ["multi-turn", "--conversations", "1", "--turns", "1", "--words", "3", "--rounds", "1"],
    ):
        done = RUN.invoke(app, ["bench", *command, *given], env={"PHI3_SERVE_API_KEY": "k"})
        assert done.exit_code == 0, done.output
        report = json.loads(done.stdout)
        assert report["settings"]["url"] == given[1]
        assert "k" not in report["settings"].values()
        assert command[0] != "overload" or report["lines"][0]["answered"] == 2


@pytest.mark.thorough
def test_a_crowd_is_counted(server_url: str, tmp_path: Path) -> None:
    given = ["--url", server_url, "--model", "tested", "--clients", "3,8", "--new-tokens", "8"]
    result = RUN.invoke(app, ["bench", "crowd", *given, "--json"])
    assert result.exit_code == 0, result.output
    few, many = json.loads(result.stdout)["lines"]
    assert (few["answered"], few["refused"], few["lost"], few["others"]) == (3, 0, 0, {})
    assert few["tokens_per_s"] > 0
    assert many["answered"] + many["refused"] == 8
    going_on = RUN.invoke(app, ["bench", "crowd", *given, "--seconds", "1", "--json"])
    few, many = json.loads(going_on.stdout)["lines"]
    assert few["answered"] > 3
    assert "429" in RUN.invoke(app, ["bench", "crowd", *given, "--svg", str(tmp_path / "x.svg")]).stdout
    assert (tmp_path / "x.svg").read_text().endswith("</svg>\n")  # also if nobody was refused


def test_what_does_not_come_whole_is_lost() -> None:
    request = crowd.chat_request(f"http://127.0.0.1:{free_port()}", {})
    assert asyncio.run(crowd.ask(request)).status == crowd.LOST
    whole = b"HTTP/1.1 429 Too Many\r\nContent-Length: 2\r\nRetry-After: 5\r\n\r\n{}"
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
    assert (crowd._parsed(whole, 1).status, crowd._parsed(whole, 1).retry_after_s) == (429, 5)
    assert crowd._parsed(chunked, 1).body == {}
    for broken in (whole[:-1], b"", chunked[:-7], b"HTTP/1.1 500 No\r\nContent-Length: 5\r\n\r\nplain"):
        with pytest.raises(crowd.IncompleteAnswer):
            crowd._parsed(broken, 1)


def test_conversations_go_on(server_url: str, tmp_path: Path) -> None:
    given = ["--url", server_url, "--model", "tested", "--conversations", "2", "--turns", "3", "--words", "20"]
    result = RUN.invoke(app, ["bench", "turns", *given, "--rounds", "2", "--json"])
    assert result.exit_code == 0, result.output
    turns = json.loads(result.stdout)["turns"]
    assert sorted(turn["number"] for turn in turns) == [0] * 4 + [1] * 4 + [2] * 4
    assert all(0 < turn["first_s"] <= turn["all_s"] for turn in turns)
    drawn = ["--svg", str(tmp_path / "x.svg")]
    assert "12 answers" in RUN.invoke(app, ["bench", "turns", *given, "--rounds", "2", *drawn]).stdout
    assert labels_of(tmp_path / "x.svg") == ["turn 1", "turn 2", "turn 3"]


def test_the_bars_of_several_crowds_say_how_large_each_was() -> None:
    lines = [
        {"clients": clients, "answered": 1, "refused": clients - 1, "p99_refusal_ms": 5.0} for clients in (10, 2000)
    ]
    (panel,) = plots.overload({"lines": lines})
    assert [bar.label for bar in panel.bars] == [
        "10 clients: 1 answered, 9 refused",
        "2,000 clients: 1 answered, 1,999 refused",
    ]
