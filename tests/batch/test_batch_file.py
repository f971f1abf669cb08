"""``phi3-serve batch`` as a person uses it: a real process and a real server."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.testclient import TestClient
from typer.testing import CliRunner

from phi3_serve.cli import app

NUM_LINES = 2000
CHAT = "/v1/chat/completions"


def asked(number: int) -> dict[str, Any]:
    return {
        "model": "tested",
        "messages": [{"role": "user", "content": f"Question {number}"}],
        "temperature": 0,
        "max_tokens": 1 + number % 3,
    }


def write(path: Path, bodies: list[dict[str, Any]], url: str = CHAT) -> None:
    path.write_text(
        "".join(
            json.dumps({"custom_id": f"request-{n}", "method": "POST", "url": url, "body": body}) + "\n"
            for n, body in enumerate(bodies)
        )
    )


def command(source: Path, target: Path, url: str, *more: str) -> list[str]:
    return [sys.executable, "-m", "phi3_serve", "batch", str(source), str(target), "--url", url, *more]


def run(source: Path, target: Path, url: str, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(source, target, url, *more), capture_output=True, text=True, timeout=120)


def run_here(source: Path, target: Path, url: str) -> subprocess.CompletedProcess[str]:
    """The command in this process, which starts in no time."""
    arguments = command(source, target, url)[3:]
    done = CliRunner().invoke(app, arguments)
    return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def until_lines(path: Path, count: int) -> None:
    end = time.monotonic() + 60
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.slow
def test_a_batch_that_is_killed_twice_loses_nothing_and_asks_nothing_twice(
    server_url: str, client: TestClient, tmp_path: Path
) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write(source, [asked(number) for number in range(NUM_LINES)])
    for stop, count in ((signal.SIGKILL, 300), (signal.SIGINT, 900)):
        process = subprocess.Popen(command(source, target, server_url), stderr=subprocess.PIPE, text=True)
        until_lines(target, count)
        process.send_signal(stop)
        _, told = process.communicate(timeout=30)
        assert process.returncode == (130 if stop == signal.SIGINT else -signal.SIGKILL)
        assert read(target)[count - 1]
    assert "The same command goes on from here." in told
    assert "Traceback" not in told
    before = target.read_text()
    assert before.count("\n") < NUM_LINES
    result = run(source, target, server_url)
    assert result.returncode == 0, result.stderr
    assert target.read_text().startswith(before)
    answers = read(target)
    assert Counter(answer["custom_id"] for answer in answers) == Counter(f"request-{n}" for n in range(NUM_LINES))
    assert {answer["response"]["status_code"] for answer in answers} == {200}
    by_id = {answer["custom_id"]: answer["response"]["body"] for answer in answers}
    for number in (0, 777, NUM_LINES - 1):
        expected = client.post(CHAT, json=asked(number)).json()["choices"]
        assert by_id[f"request-{number}"]["choices"] == expected
    result = run(source, target, server_url)  # nothing is left
    assert result.returncode == 0
    assert len(read(target)) == NUM_LINES


def test_kaitos_call_can_be_asked_too_and_an_error_is_an_answer(server_url: str, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write(source, [{"prompt": "Hi", "generate_kwargs": {"do_sample": False}}, {"prompt": 3}], url="/chat")
    result = run(source, target, server_url)
    assert result.returncode == 1
    told = f"1 request got an error as the answer, which is in {target}."
    assert told in result.stderr.replace("\n", " ")
    by_id = {answer["custom_id"]: answer["response"] for answer in read(target)}
    assert by_id["request-0"]["status_code"] == 200
    assert by_id["request-0"]["request_id"]
    assert "Result" in by_id["request-0"]["body"]
    assert by_id["request-1"]["status_code"] == 422
    assert "prompt" in json.dumps(by_id["request-1"]["body"])
    again = run_here(source, target, server_url)  # nothing is left, and the error is still there
    assert (again.returncode, told in again.stderr.replace("\n", " ")) == (1, True)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"custom_id": "a"}\n', "Line 1: `method` is missing"),
        (None, "in.jsonl cannot be read: No such file"),
        ("\xff", "Line 1: it is not text in UTF-8"),
    ],
)
def test_a_bad_file_is_refused_before_anything_is_sent(text: str | None, complaint: str, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    if text is not None:
        source.write_bytes(text.encode("latin-1"))
    result = run_here(source, target, "http://127.0.0.1:1")
    assert result.returncode == 2
    assert complaint in result.stderr
    assert "Traceback" not in result.stderr
    assert not target.exists()


def test_answers_of_another_batch_are_not_mixed_in(server_url: str, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write(source, [asked(0)])
    target.write_text('{"custom_id": "from yesterday"}\n')
    result = run_here(source, target, server_url)
    assert result.returncode == 2
    assert "has an answer to 'from yesterday', which" in result.stderr.replace("\n", " ")
    assert target.read_text() == '{"custom_id": "from yesterday"}\n'


def test_requests_are_sent_again_when_the_server_says_so(serve_app: Callable[[FastAPI], str], tmp_path: Path) -> None:
    """A stand-in, because a real server refuses when it likes."""
    server, tries = FastAPI(), Counter[str]()

    @server.post("/chat")
    async def chat(request: Request) -> JSONResponse:
        name = (await request.json())["prompt"]
        tries[name] += 1
        if tries[name] <= int(name) % 3:
            return JSONResponse({"detail": "busy"}, (429, 503)[int(name) % 2], {"Retry-After": "0"})
        if name == "5":
            return JSONResponse({"detail": "it cannot be loaded"}, 503)
        return JSONResponse({"Result": name})

    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write(source, [{"prompt": str(number)} for number in range(60)], url="/chat")
    result = run(source, target, serve_app(server), "--at-once", "7")
    assert result.returncode == 1, result.stderr
    assert all(tries[str(number)] == 1 + number % 3 for number in range(60))
    statuses = Counter(answer["response"]["status_code"] for answer in read(target))
    assert statuses == {200: 59, 503: 1}


def test_a_key_is_sent(serve_app: Callable[[FastAPI], str], tmp_path: Path) -> None:
    server = FastAPI()

    @server.post("/chat")
    async def chat(request: Request) -> dict[str, str | None]:
        return {"Result": request.headers.get("authorization")}

    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write(source, [{}], url="/chat")
    environment = {**os.environ, "PHI3_SERVE_API_KEY": "secret"}
    subprocess.run(command(source, target, serve_app(server)), env=environment, check=True, timeout=60)
    assert read(target)[0]["response"]["body"] == {"Result": "Bearer secret"}
