"""``phi3-serve chat`` as a person uses it: a real process, on a real terminal and from a pipe."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from phi3_serve.core import VariantState
from phi3_serve.errors import ModelUnavailable
from phi3_serve.launch.proxy import free_port
from tests.support import LocalBackend, engine_of

CHAT = [sys.executable, "-m", "phi3_serve", "chat"]
GREEDY = "/set temperature 0\n/set max_new_tokens 12\n"
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\r")


def answers(client: TestClient, *texts: str) -> list[str]:
    """What the server says to ``texts``, one after the other."""
    messages: list[dict[str, str]] = []
    for text in texts:
        messages.append({"role": "user", "content": text})
        kwargs = {"do_sample": False, "max_new_tokens": 12}
        said = client.post("/chat", json={"messages": messages, "generate_kwargs": kwargs}).json()["Result"]
        messages.append({"role": "assistant", "content": said})
    return [m["content"] for m in messages if m["role"] == "assistant"]


def piped(url: str, typed: str, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*CHAT, "--url", url, *more], input=typed, capture_output=True, text=True, timeout=60)


def test_from_a_pipe_each_line_is_a_message(server_url: str, client: TestClient) -> None:
    result = piped(server_url, GREEDY + "Hi\nWho are you?\n")
    assert result.returncode == 0, result.stderr
    assert result.stdout == "".join(f"{a}\n" for a in answers(client, "Hi", "Who are you?"))


def test_commands(server_url: str, client: TestClient) -> None:
    (hi,) = answers(client, "Hi")
    typed = "Hi\n/retry\n/new\n/show\n/models\n/set tempersture 1\n/set top_k -2\nHi\n/set top_k\n/hlep\n/model nobody\n/system Be kind.\n/show\n/quit\nnever\n"
    lines = piped(server_url, GREEDY + typed, "--model", "tested").stdout
    assert lines.startswith(f"{hi}\n{hi}\n")
    rest = lines.removeprefix(f"{hi}\n{hi}\n").splitlines()
    assert rest[:4] == [
        'model: "tested"',
        "system: null",
        'parameters: {"temperature": 0, "max_new_tokens": 12}',
        "messages: 0",
    ]
    assert re.fullmatch(r"\* tested +ready", rest[4])
    assert rest[5] == "`tempersture` is not a generate parameter; did you mean `temperature`?"
    assert "top_k" in rest[6]
    assert "greater than or equal to 0" in rest[6]
    assert rest[7] == "/hlep is not a command; did you mean /help?"
    assert "nobody" in rest[8]
    assert 'system: "Be kind."' in rest[9:]
    assert len(rest) == 13


def test_a_server_that_is_not_there() -> None:
    result = piped(f"http://127.0.0.1:{free_port()}", "Hi\n")
    assert result.returncode == 2
    assert "cannot be reached" in result.stderr


def test_it_waits_for_a_model_that_loads(
    server_url: str, client: TestClient, backend: LocalBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, refusals = backend.generate, iter(range(2))

    async def loads_first(request: Any) -> Any:
        for _ in refusals:
            raise ModelUnavailable("Model tested is loading.", 1)
        async for event in whole(request):
            yield event

    expected = answers(client, "Hi")
    monkeypatch.setattr(backend, "generate", loads_first)
    monkeypatch.setattr(backend, "state_of", {"tested": VariantState("loading")})
    began = time.monotonic()
    assert piped(server_url, GREEDY + "Hi\n").stdout.splitlines() == expected
    assert time.monotonic() - began > 2


class Screen:
    """A process on a terminal of its own."""

    def __init__(self, command: list[str], home: Path) -> None:
        self._fd, other = pty.openpty()
        environment = {**os.environ, "XDG_STATE_HOME": str(home), "TERM": "xterm"}
        self.process = subprocess.Popen(
            command, stdin=other, stdout=other, stderr=other, start_new_session=True, env=environment, preexec_fn=_own
        )
        os.close(other)
        self.text = ""

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def wait_for(self, found: str, after: int = 0) -> int:
        """Read until ``found`` is on the screen; where it ends."""
        self.wait_until(lambda: found in self.text[after:])
        return self.text.index(found, after) + len(found)

    def wait_until(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not holds():
            assert time.monotonic() < deadline, self.text[-2000:]
            if select.select([self._fd], [], [], 0.1)[0]:
                self.text = ESCAPES.sub("", self.text + os.read(self._fd, 65536).decode(errors="replace"))

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._fd)


def _own() -> None:
    """Make the terminal the process's own, so that Ctrl-C typed there reaches it, and heard, as a shell does.

    Tests that run in the background of a script have inherited that it is ignored.
    """
    import fcntl
    import termios

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
def screen(server_url: str, tmp_path: Path) -> Iterator[Screen]:
    screen = Screen([*CHAT, "--url", server_url], tmp_path)
    yield screen
    screen.close()


def test_ctrl_c_stops_the_answer_and_not_the_program(screen: Screen, backend: LocalBackend, tmp_path: Path) -> None:
    at = screen.wait_for("> ")
    for command in ("/set max_new_tokens 1900", "/set eos_token_id 703", "/set suppress_tokens [703]"):
        screen.type(f"{command}\n")
        at = screen.wait_for("> ", at + len(command))
    screen.type("Tell me everything\n")
    screen.wait_for("Tell me everything\n", at)
    screen.wait_until(lambda: len(screen.text) > at + 400)  # the answer is under way
    screen.type("\x03")
    at = screen.wait_for("(stopped)")
    engine: Any = engine_of(backend.replica)
    screen.wait_until(lambda: engine.load.num_running == 0)  # the server noticed
    screen.type("/set max_new_tokens 3\n")
    at = screen.wait_for("> ", screen.wait_for("max_new_tokens 3", at))
    screen.type("Hi\n")
    screen.wait_for("> ", screen.wait_for("3 tokens, ", at))
    screen.type("\x04")
    assert screen.process.wait(20) == 0
    assert "Tell me everything" in (tmp_path / "phi3-serve" / "chat_history").read_text()
