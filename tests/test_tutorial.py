"""docs/tutorial.md, carried out: every block runs as a reader would run it, and prints what the page says."""

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from fastapi import FastAPI

from phi3_serve import catalogue
from phi3_serve.launch.proxy import free_port
from tests.serving.cluster import BIN, running

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "tutorial.md").read_text()
FIRST, SECOND = "http://127.0.0.1:8000", "http://127.0.0.1:8001"  # the servers of the page
PART = re.compile(r"^<!-- (?P<note>.*?) -->$|^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass
class Block:
    language: str
    text: str
    note: str  # the comment before it
    prints: list[str] = field(default_factory=list)  # parts of its output, from the comments after it

    @property
    def file(self) -> str | None:
        return self.note.removeprefix("file: ") if self.note.startswith("file: ") else None

    @property
    def is_run(self) -> bool:
        return self.language == "bash" and not self.note.startswith("test: ")

    @property
    def is_of_own_model(self) -> bool:
        return self.note == "own model"


def blocks(page: str = PAGE) -> list[Block]:
    """The blocks of ``page``, which is Markdown."""
    found: list[Block] = []
    note = ""
    for part in PART.finditer(page):
        if part["language"]:
            found.append(Block(part["language"], part["text"], note))
            note = ""
        elif part["note"].startswith("prints: "):
            found[-1].prints.append(part["note"].removeprefix("prints: "))
        else:
            note = part["note"]
    return found


BLOCKS = blocks()


@pytest.fixture(scope="module")
def url(make_tiny_app: Callable[[], FastAPI], serve_app: Callable[[FastAPI], str]) -> str:
    """The first server, without Ray; tests/serving/test_cluster.py runs `make serve` itself."""
    return serve_app(make_tiny_app())


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the reader works: a clone, and the files that the page says to save."""
    clone = tmp_path_factory.mktemp("tutorial")
    (clone / "examples").symlink_to(ROOT / "examples")
    return clone


def save_files(directory: Path, url: str, page: list[Block] = BLOCKS) -> None:
    for block in page:
        if block.file:
            (directory / block.file).write_text(block.text.replace(FIRST, url))


def check(block: Block, directory: Path, url: str = FIRST, second: str = SECOND) -> None:
    """Run ``block``, and compare what it prints."""
    printed = run(block, directory, url, second)
    assert block.prints
    assert [text for text in block.prints if text not in printed] == [], printed


def run(block: Block, directory: Path, url: str, second: str) -> str:
    text = block.text.replace(FIRST, url).replace(SECOND, second)
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "PHI3_SERVE_URL": url, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_every_block_is_run_saved_or_says_why_not() -> None:
    assert len(BLOCKS) >= 15
    for block in BLOCKS:
        assert block.is_run or block.file or block.note.startswith("test: "), block.text
    assert sum(block.is_run for block in BLOCKS) >= 9
    assert sum("needs a" in block.note for block in BLOCKS) == 2


@pytest.mark.slow
@pytest.mark.parametrize("index", [n for n, b in enumerate(BLOCKS) if b.is_run and not b.is_of_own_model])
def test_a_block_prints_what_the_page_says(index: int, directory: Path, url: str) -> None:
    save_files(directory, url)
    check(BLOCKS[index], directory, url)


@pytest.fixture(scope="module")
def baker(directory: Path) -> Iterator[str]:
    """The second server, as `phi3-serve up baker.yaml` starts it; its URL."""
    save_files(directory, FIRST)
    check(next(block for block in BLOCKS if "fine_tune.py" in block.text), directory, FIRST)
    port = free_port()
    config = directory / "baker.yaml"
    config.write_text(config.read_text().replace("port: 8001", f"port: {port}"))
    (command,) = (block.text for block in BLOCKS if "phi3-serve up" in block.text)
    in_directory = ["bash", "-c", f"cd {directory} && exec {command}"]
    with running(in_directory, directory / "log", port) as server:
        server.wait_until_ready()
        yield server.url


@pytest.mark.slow
@pytest.mark.cluster
def test_a_model_of_one_s_own_answers(baker: str, directory: Path) -> None:
    check(next(block for block in BLOCKS if "8001" in block.text and block.is_run), directory, FIRST, second=baker)


def test_what_needs_a_gpu_or_a_cluster_is_there() -> None:
    texts = "\n".join(block.text for block in BLOCKS if "needs a" in block.note)
    (model,) = re.findall(rf"{FIRST}/([\w.-]+)/chat", texts)
    assert catalogue.find(model, [variant.name for variant in catalogue.VARIANTS]) == model
    (manifest,) = re.findall(r"kubectl apply -f (\S+)", texts)
    ray_service = yaml.safe_load((ROOT / manifest).read_text())
    assert f"svc/{ray_service['metadata']['name']}-serve-svc 8000" in texts
    (image,) = re.findall(r"docker build -t (\S+)", texts)
    assert image in (ROOT / manifest).read_text()
