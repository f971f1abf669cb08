"""Each example runs as a reader runs it, against phi-3-tiny behind a real socket."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi import FastAPI

ROOT = Path(__file__).parents[1]
PYTHON = sys.executable
COMMANDS = {  # the command, and a part of what it prints
    "bash examples/curl.sh": "632",
    f"{PYTHON} examples/python_requests.py": "Paris",
    f"{PYTHON} examples/python_openai.py": "Paris",
    f"{PYTHON} examples/python_batch.py": "632",
    f"{PYTHON} examples/structured_output.py": "City(name=",
    f"{PYTHON} examples/streaming.py": "",
    f"{PYTHON} examples/beams.py": "",
    "node examples/javascript.mjs": "castle",
}
OF_ADAPTERS = "train_adapter.py"  # tests/test_adapters_page.py runs it


@pytest.fixture(scope="module")
def url(make_tiny_app: Callable[[], FastAPI], serve_app: Callable[[FastAPI], str]) -> str:
    return serve_app(make_tiny_app())


def run(command: list[str], url: str) -> str:
    environment = {**os.environ, "PHI3_SERVE_URL": url, "PHI3_SERVE_API_KEY": "none"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.thorough
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: Path(command.split()[1]).name)
def test_example(command: str, url: str) -> None:
    words = command.split()
    if not shutil.which(words[0]):
        pytest.skip(f"{words[0]} is not installed")
    printed = run(words, url)
    assert printed.strip()
    assert COMMANDS[command] in printed


def test_a_file_of_requests_is_answered(url: str, tmp_path: Path) -> None:
    output = tmp_path / "answers.jsonl"
    batch = [PYTHON, "-m", "phi3_serve", "batch", "examples/questions.jsonl", str(output), "--url", url]
    done = subprocess.run(batch, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1, done.stderr
    answers = {line["custom_id"]: line["response"] for line in map(json.loads, output.read_text().splitlines())}
    assert set(answers) == {"capital", "sum", "spelling", "refused"}
    assert "632" in answers["sum"]["body"]["choices"][0]["message"]["content"]
    assert answers["refused"]["status_code"] == 400


def test_every_example_is_run_and_listed() -> None:
    files = {path.name for path in (ROOT / "examples").iterdir() if path.suffix in (".py", ".sh", ".mjs")}
    assert files == {OF_ADAPTERS, *(Path(command.split()[1]).name for command in COMMANDS)}
    readme = (ROOT / "examples" / "README.md").read_text()
    assert [name for name in sorted(files) if f"examples/{name}" not in readme] == []
