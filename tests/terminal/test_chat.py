"""`phi3-serve chat` on a server without Ray: one question, pipes, and a conversation on a pseudo-terminal."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Response
from starlette.testclient import TestClient
from typer.testing import CliRunner

from phi3_serve.cli import app
from phi3_serve.core.event import Delta, Done
from phi3_serve.core.variant_state import VariantState
from phi3_serve.errors import EngineFailure, ModelUnavailable, Overloaded
from phi3_serve.launch.proxy import free_port
from phi3_serve.terminal.conversation import Conversation
from tests.support import LocalBackend, engine_of
from tests.terminal.screen import PASTE, PROMPT, Screen

CHAT = [sys.executable, "-m", "phi3_serve", "chat"]
GREEDY = ["--temperature", "0", "--set", "max_new_tokens=12"]
SET_GREEDY = "/set temperature 0\n/set max_new_tokens 12\n"
CUT = "(cut at its maximum length)\n"
COLOUR = b"\x1b[31m"  # red


def answers(client: TestClient, *texts: str, system: str | None = None) -> list[str]:
    """What the server says to ``texts``, one after the other."""
    messages = [] if system is None else [{"role": "system", "content": system}]
    for text in texts:
        messages.append({"role": "user", "content": text})
        kwargs = {"do_sample": False, "max_new_tokens": 12}
        said = client.post("/chat", json={"messages": messages, "generate_kwargs": kwargs}).json()["Result"]
        messages.append({"role": "assistant", "content": said})
    return [m["content"] for m in messages if m["role"] == "assistant"]


def run(url: str, *more: str, stdin: str | bytes = "", home: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command in this process, with ``stdin`` as its pipe."""
    environment = None if home is None else {"XDG_DATA_HOME": str(home)}
    done = CliRunner().invoke(app, ["chat", "--url", url, *more], input=stdin, env=environment)
    return subprocess.CompletedProcess(more, done.exit_code, done.stdout, done.stderr)


def by_line(url: str, typed: str, *more: str, home: Path | None = None) -> subprocess.CompletedProcess[str]:
    return run(url, "--lines", *more, stdin=SET_GREEDY + typed, home=home)


def test_one_question_prints_only_the_answer(server_url: str, client: TestClient) -> None:
    done = run(server_url, "Who are", "you?", *GREEDY)
    (expected,) = answers(client, "Who are you?")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{expected}\n", CUT)


@pytest.mark.parametrize(
    ("stdin", "words", "asked"),
    [
        ("first line\n\nsecond line\n", ["Summarise."], "first line\n\nsecond line\n\nSummarise."),
        ("first line\nsecond line\n", [], "first line\nsecond line"),
        ("", ["Who are you?"], "Who are you?"),
        ("/quit\n", [], "/quit"),
    ],
)
def test_a_pipe_and_the_question_are_one_message(
    stdin: str, words: list[str], asked: str, server_url: str, client: TestClient
) -> None:
    done = run(server_url, *words, *GREEDY, stdin=stdin)
    assert (done.returncode, done.stdout) == (0, f"{answers(client, asked)[0]}\n")


def test_settings_of_the_command_line(server_url: str, client: TestClient) -> None:
    done = run(server_url, "Hi", *GREEDY, "--system", "Be kind.", "--model", "tested", "--verbose")
    assert done.stdout == f"{answers(client, 'Hi', system='Be kind.')[0]}\n"
    statistics = done.stderr.removeprefix(CUT)
    prompt, answer, speed, first = statistics.rstrip("\n").split(", ")
    assert prompt.split()[0] == "prompt"
    assert answer == "answer 12 tokens"
    assert float(speed.removesuffix(" tokens/s")) > 0
    assert float(first.removeprefix("first after ").removesuffix(" ms")) > 0


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (
            Response(status_code=308, headers={"Location": "https://x/v1/models"}),
            "redirects to https://x/v1/models. Use",
        ),
        (Response(status_code=502), "The server answers 502 Bad Gateway."),
    ],
)
def test_a_refusal_without_words_is_told(serve_app: Callable[[FastAPI], str], response: Response, message: str) -> None:
    proxy = FastAPI()
    proxy.add_api_route("/v1/models", lambda: response)
    done = run(serve_app(proxy), "Hi")
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr


@pytest.mark.parametrize(
    ("typed", "set_to"),
    [("stop=4", "4"), ('stop=["4"]', ["4"]), ("regex=[0]", "[0]"), ("json_schema=true", True), ("top_k=4", 4)],
)
def test_a_text_needs_no_quotes(typed: str, set_to: object) -> None:
    conversation = Conversation("tested")
    conversation.set(*typed.split("=", 1))
    assert list(conversation.parameters.values()) == [set_to]


def test_a_real_pipe_and_a_real_exit_code(server_url: str, client: TestClient, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("first\nsecond\n")
    (expected,) = answers(client, "first\nsecond\n\nSummarise.")
    chat = f"{' '.join(CHAT)} --url {server_url} {' '.join(GREEDY)}"
    command = f"cat {tmp_path}/file | {chat} Summarise. && {chat} --set top_k=-2 Hi < /dev/null"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, f"{expected}\n")
    assert "top_k" in done.stderr


def test_several_sequences_are_printed_one_after_the_other(server_url: str) -> None:
    beams = ["--set", "num_beams=3", "--set", "num_return_sequences=2", "--set", "do_sample=false"]
    done = run(server_url, "Hi", "--set", "max_new_tokens=4", *beams)
    first, second = done.stdout.removesuffix("\n").split("\n\n")
    assert first != second


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "message"),
    [
        ([], "", 2, "There is no question: neither the command line nor standard input has one."),
        ([" "], "\n", 2, "There is no question: neither the command line nor standard input has one."),
        ([], b"a\xff", 2, "Standard input is not UTF-8 text: invalid start byte at byte 1."),
        (["Hi", "--set", "top_k"], "", 2, "--set top_k: must be NAME=VALUE, for example temperature=0.3."),
        (
            ["Hi", "--set", "top_q=3"],
            "",
            2,
            "--set top_q=3: `top_q` is not a generate parameter; did you mean `top_p`?",
        ),
        (["Hi", "--set", "top_k=-2"], "", 1, "top_k"),
        (["Hi", "--model", "nobody"], "", 1, "nobody"),
        (["Hi", "--url", "http://127.0.0.1:x"], "", 1, "http://127.0.0.1:x is not a URL: nonnumeric port: 'x'"),
        (["Hi", "--url", "ftp://127.0.0.1"], "", 1, "ftp://127.0.0.1: the scheme must be http or https, and is ftp"),
    ],
)
def test_what_is_wrong_is_said_with_an_exit_code(
    arguments: list[str], stdin: str | bytes, code: int, message: str, server_url: str
) -> None:
    done = run(server_url, *arguments, stdin=stdin)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_lines_and_a_question_exclude_each_other(server_url: str) -> None:
    assert run(server_url, "--lines", "Hi").returncode == 2


def test_a_server_that_is_not_there() -> None:
    done = run(f"http://127.0.0.1:{free_port()}", "Hi")
    assert (done.returncode, done.stdout) == (3, "")
    assert "cannot be reached" in done.stderr


def test_another_server_is_not_taken_for_one_of_ours(serve_app: Callable[[FastAPI], str]) -> None:
    other = FastAPI()
    other.add_api_route("/v1/models", lambda: Response("<html>"))
    done = run(serve_app(other), "Hi")
    assert (done.returncode, done.stdout) == (3, "")
    assert "/v1/models answers, but not with JSON. Is it phi3-serve?" in done.stderr


@pytest.mark.parametrize(
    ("failure", "code"), [(Overloaded("The queue is full.", 1), 3), (EngineFailure("The engine broke."), 1)]
)
def test_what_the_server_cannot_do_has_an_exit_code(
    failure: Exception, code: int, server_url: str, backend: LocalBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(request: Any) -> Any:
        raise failure
        yield

    monkeypatch.setattr(backend, "generate", fails)
    done = run(server_url, "Hi")
    assert (done.returncode, done.stdout, done.stderr) == (code, "", f"{failure.args[0]}\n")


def test_an_answer_that_breaks_off_is_not_taken_for_whole(
    server_url: str, client: TestClient, backend: LocalBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = backend.generate

    async def breaks(request: Any) -> Any:
        events = whole(request)
        async for event in events:
            yield event
            if isinstance(event, Delta) and event.text:
                break
        await events.aclose()
        raise EngineFailure("The engine broke.")

    (expected,) = answers(client, "Hi")
    monkeypatch.setattr(backend, "generate", breaks)
    done = run(server_url, "Hi", *GREEDY)
    assert done.returncode == 1
    assert expected.startswith(done.stdout.removesuffix("\n"))
    assert done.stdout
    assert done.stderr == "The engine broke.\n"


@pytest.mark.thorough
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
    done = run(server_url, "Hi", *GREEDY)
    assert done.stdout.splitlines() == expected
    assert done.stderr == f"Model tested is loading.\n{CUT}"
    assert time.monotonic() - began > 2


def test_with_lines_each_line_is_a_message(server_url: str, client: TestClient) -> None:
    result = by_line(server_url, "Hi\nWho are you?\n")
    assert result.returncode == 0, result.stderr
    assert result.stdout == "".join(f"{a}\n" for a in answers(client, "Hi", "Who are you?"))


def test_commands(server_url: str, client: TestClient) -> None:
    (hi,) = answers(client, "Hi")
    typed = "Hi\n/retry\n/new\n/show\n/models\n/set tempersture 1\n/set top_k -2\nHi\n/set top_k\n/hlep\n/model nobody\n/retry\n/system Be kind.\n/show\n/bye\nnever\n"
    done = by_line(server_url, typed, "--model", "tested")
    lines = done.stdout
    assert lines.startswith(f"{hi}\n{hi}\n")
    rest = lines.removeprefix(f"{hi}\n{hi}\n").splitlines()
    assert rest == [
        'model: "tested"',
        "system: null",
        'parameters: {"temperature": 0, "max_new_tokens": 12}',
        "messages: 0",
        "* tested                       ready",
        'model: "tested"',
        'system: "Be kind."',
        'parameters: {"temperature": 0, "max_new_tokens": 12}',
        "messages: 0",
    ]
    errors = done.stderr.replace(CUT, "").splitlines()
    assert errors[0] == "`tempersture` is not a generate parameter; did you mean `temperature`?"
    assert "top_k" in errors[1]
    assert "allowed: whole number, at least -1" in errors[1]
    assert errors[2] == "/hlep is not a command; did you mean /help?"
    assert "nobody" in errors[3]
    assert errors[4:] == ["Nothing has been said yet."]
    assert done.returncode == 1


def test_a_failed_retry_keeps_the_earlier_answer(server_url: str) -> None:
    lines = by_line(server_url, "Hi\n/set top_k -2\n/retry\n/show\n").stdout.splitlines()
    assert lines[-1] == "messages: 2"


def test_a_path_is_not_a_command(server_url: str, client: TestClient) -> None:
    done = by_line(server_url, "/etc/hosts is what?\n")
    assert done.stdout == f"{answers(client, '/etc/hosts is what?')[0]}\n"


def test_a_name_of_a_model_may_have_any_character(server_url: str) -> None:
    done = by_line(server_url, "/model a b?c\n/model mod\u00e8le\n/model\n/show\n", "--model", "tested")
    assert done.stderr.splitlines() == [
        "Model a b?c is not served here; served are tested.",
        "Model mod\u00e8le is not served here; served are tested.",
        "/model needs the NAME of a model; /models lists them.",
    ]
    assert done.stdout.splitlines()[0] == 'model: "tested"'


def test_help_names_every_command(server_url: str) -> None:
    done = by_line(server_url, "/help\n")
    for name in ("set", "system", "model", "models", "retry", "new", "save", "load", "show", "verbose", "help", "quit"):
        assert f"\n/{name} " in f"\n{done.stdout}", name


def test_a_saved_conversation_goes_on(server_url: str, client: TestClient, tmp_path: Path) -> None:
    first, second = answers(client, "Hi", "Who are you?", system="Be kind.")
    done = by_line(server_url, "/load\n/system Be kind.\nHi\n/save greeting\n/load\n", home=tmp_path)
    file = tmp_path / "phi3-serve" / "conversations" / "greeting.json"
    assert done.stdout.splitlines() == ["no conversation is saved", first, f"saved: {file}", "greeting"]
    later = run(server_url, "--lines", stdin="/load greeting\nWho are you?\n/save greeting\n", home=tmp_path)
    assert later.stdout.splitlines() == [
        'model: "tested"',
        'system: "Be kind."',
        'parameters: {"temperature": 0, "max_new_tokens": 12}',
        "messages: 2",
        second,
        f"saved: {file}",
    ]
    body = json.loads(file.read_text())
    assert [m["content"] for m in body["messages"]] == ["Be kind.", "Hi", first, "Who are you?", second]
    assert client.post("/v1/chat/completions", json=body).status_code == 200  # it is a request
    refused = by_line(server_url, "/save greeting\n", home=tmp_path)
    assert (refused.returncode, refused.stderr) == (1, f"{file} exists. Save under another name, or delete it.\n")


def test_a_conversation_with_a_model_that_is_not_served_goes_on_with_another(server_url: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"model": "gone", "messages": []}')
    done = by_line(server_url, f"/load {tmp_path}/x.json\n")
    assert done.stdout.splitlines()[:2] == ["gone is not served here; tested is asked instead", 'model: "tested"']


@pytest.fixture
def screen(server_url: str, tmp_path: Path) -> Iterator[Screen]:
    screen = Screen([*CHAT, "--url", server_url], tmp_path)
    yield screen
    screen.close()


def typed(screen: Screen, text: str, at: int) -> int:
    """Type ``text`` and Enter, and wait for the next prompt; where it ends."""
    screen.type(f"{text}\r")
    return screen.wait_for(PROMPT, screen.wait_for(text, at))


def test_ctrl_c_stops_the_answer_and_not_the_program(screen: Screen, backend: LocalBackend, tmp_path: Path) -> None:
    at = screen.wait_for(PROMPT)
    for command in ("/verbose", "/set max_new_tokens 1900", "/set eos_token_id 703", "/set suppress_tokens [703]"):
        at = typed(screen, command, at)
    screen.type("Tell me everything\r")
    at = screen.wait_for("Tell me everything", at)
    screen.wait_until(lambda: len(screen.text) > at + 400)  # the answer is under way
    screen.type("\x03")
    at = screen.wait_for("(stopped)")
    engine: Any = engine_of(backend.replica)
    screen.wait_until(lambda: engine.load.num_running == 0)  # the server noticed
    at = typed(screen, "/set max_new_tokens 3", screen.wait_for(PROMPT, at))
    screen.type("Hi\r")
    screen.wait_for(PROMPT, screen.wait_for("answer 3 tokens, ", at))
    screen.type("not sent\x03")
    screen.type("\x04")
    assert screen.wait_for_end() == 0
    assert "not sent" in screen.text
    history = tmp_path / "phi3-serve" / "chat_history"
    assert "Tell me everything" in history.read_text()
    assert history.stat().st_mode & 0o77 == 0


def messages_of(screen: Screen, path: Path, at: int) -> list[str]:
    """What the user has said, as /save writes it."""
    screen.type(f"/save {path}\r")
    screen.wait_for("saved: ", at)
    screen.wait_until(path.exists)
    return [m["content"] for m in json.loads(path.read_text())["messages"] if m["role"] == "user"]


@pytest.mark.thorough
def test_a_pasted_text_is_one_question(screen: Screen, tmp_path: Path) -> None:
    at = typed(screen, "/set temperature 0", screen.wait_for(PROMPT))
    at = typed(screen, "/set max_new_tokens 2", at)
    pasted = "four lines:\none\n/two\nthree"
    screen.type(PASTE.format(pasted.replace("\n", "\r")))  # as terminals send it
    at = screen.wait_for("three", at)
    time.sleep(0.5)
    assert PROMPT not in screen.text[at:]  # nothing is sent before Enter
    screen.type("\r")
    at = screen.wait_for(PROMPT, at)
    assert messages_of(screen, tmp_path / "x.json", at) == [pasted]


def test_a_message_of_several_lines_can_be_typed(screen: Screen, tmp_path: Path) -> None:
    at = typed(screen, "/set temperature 0", screen.wait_for(PROMPT))
    at = typed(screen, "/set max_new_tokens 2", at)
    screen.type("one\x1b\rtwo\r")  # Alt-Enter
    at = screen.wait_for(PROMPT, screen.wait_for("two", at))
    screen.type('"""three\rfour\r"""\r')
    at = screen.wait_for(PROMPT, screen.wait_for("four", at))
    assert messages_of(screen, tmp_path / "x.json", at) == ["one\ntwo", "three\nfour"]


@pytest.mark.thorough
def test_completion_and_the_history_of_an_earlier_conversation(server_url: str, tmp_path: Path) -> None:
    first = Screen([*CHAT, "--url", server_url], tmp_path)
    at = typed(first, "/set top_k 7", first.wait_for(PROMPT))
    first.type("/sho\t")
    at = first.wait_for("/show", at)
    first.type("\r")
    first.wait_for('parameters: {"top_k": 7}', at)
    first.close()
    second = Screen([*CHAT, "--url", server_url], tmp_path)
    at = second.wait_for(PROMPT)
    second.type("\x1b[A")  # the arrow up
    at = second.wait_for("/show", at)
    second.type("\x1b[A\r")
    at = second.wait_for(PROMPT, second.wait_for("/set top_k 7", at))
    typed(second, "/show", at)
    assert 'parameters: {"top_k": 7}' in second.text[at:]
    second.close()


@pytest.mark.parametrize("is_interactive", [True, False])
def test_words_wrap_on_a_terminal(
    is_interactive: bool,
    server_url: str,
    backend: LocalBackend,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    said = "Some words that are longer than the line, and\x1b[31m a control character."

    async def says(request: Any) -> Any:
        yield Delta(said)
        async for event in whole(request):
            if isinstance(event, Done):
                yield event

    whole = backend.generate
    monkeypatch.setattr(backend, "generate", says)
    screen = Screen([*CHAT, "--url", server_url, *([] if is_interactive else ["Hi"])], tmp_path, columns=30)
    if is_interactive:
        screen.wait_for(PROMPT)
        screen.type("Hi\r")
    end = screen.wait_for("character.")
    lines = screen.text[:end].splitlines()[-3:]
    assert lines == ["Some words that are longer", "than the line, and\ufffd[31m a", "control character."]
    assert b"\x1b[31m" not in screen.raw
    screen.close()


@pytest.mark.parametrize(("env", "is_coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_colours_honour_no_color(env: dict[str, str], is_coloured: bool, server_url: str, tmp_path: Path) -> None:
    screen = Screen([*CHAT, "--url", server_url], tmp_path, env=env)
    at = typed(screen, "/hlep", screen.wait_for(PROMPT))
    assert "did you mean /help?" in screen.text[:at]
    assert (COLOUR in screen.raw) == is_coloured
    screen.close()


@pytest.mark.thorough
def test_ctrl_c_ends_one_question(server_url: str, backend: LocalBackend, tmp_path: Path) -> None:
    endless = ["--set", "max_new_tokens=1900", "--set", "eos_token_id=703", "--set", "suppress_tokens=[703]"]
    screen = Screen([*CHAT, "--url", server_url, "Tell me everything", *endless], tmp_path)
    screen.wait_until(lambda: len(screen.text) > 400)
    screen.type("\x03")
    assert screen.wait_for_end() == 130
    assert "Traceback" not in screen.text
    engine: Any = engine_of(backend.replica)
    screen.wait_until(lambda: engine.load.num_running == 0)
    screen.close()


@pytest.mark.thorough
def test_answers_can_go_to_a_file_while_questions_are_typed(
    server_url: str, client: TestClient, tmp_path: Path
) -> None:
    command = f"{' '.join(CHAT)} --url {server_url} {' '.join(GREEDY)} > {tmp_path}/answers"
    screen = Screen(["bash", "-c", command], tmp_path)
    typed(screen, "Hi", screen.wait_for(PROMPT))
    screen.type("\x04")
    assert screen.wait_for_end() == 0
    assert (tmp_path / "answers").read_text() == f"{answers(client, 'Hi')[0]}\n"
    screen.close()
