"""`phi3-serve compare` on a server without Ray: tables, JSON, bars, errors."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner, Result

from phi3_serve.cli import app
from phi3_serve.launch.proxy import free_port

GREEDY, WARM = "temperature=0 max_new_tokens=6", "temperature=1.5 seed=3 max_new_tokens=9"


def run(url: str, *more: str) -> Result:
    return CliRunner().invoke(app, ["compare", "--url", url, "Who are you?", *more])


def answer(client: TestClient, **parameters: Any) -> Any:
    body = {"model": "tested", "messages": [{"role": "user", "content": "Who are you?"}], "logprobs": True}
    return client.post("/v1/chat/completions", json={**body, "generate_kwargs": parameters}).json()["choices"][0]


def test_each_column_is_the_answer_of_its_settings(server_url: str, client: TestClient) -> None:
    result = run(server_url, "--with", GREEDY, "--with", WARM, "--json")
    assert result.exit_code == 0, result.output
    first, second = json.loads(result.stdout)
    for found, given in (
        (first, {"temperature": 0, "max_new_tokens": 6}),
        (second, {"temperature": 1.5, "seed": 3, "max_new_tokens": 9}),
    ):
        expected = answer(client, **given)
        assert found["texts"] == [expected["message"]["content"]]
        assert (found["model"], found["settings"], found["error"]) == ("tested", given, None)
        assert found["tokens"] == given["max_new_tokens"]
        assert found["end"] == "at its maximum length"
        logprobs = [token["logprob"] for token in expected["logprobs"]["content"]]
        assert math.isclose(found["token_probability"], math.exp(sum(logprobs) / len(logprobs)), rel_tol=1e-4)
        assert 0 < found["first_token_s"] <= found["seconds"]
    assert first["texts"] != second["texts"]


def test_several_answers_of_one_column_are_numbered(server_url: str) -> None:
    beams = "num_beams=3 num_return_sequences=3 do_sample=false max_new_tokens=4"
    result = run(server_url, "--with", beams, "--with", GREEDY, "--json")
    first, second = json.loads(result.stdout)
    assert (len(first["texts"]), len(second["texts"])) == (3, 1)
    assert first["token_probability"] is None  # beams have scores of their own
    table = run(server_url, "--with", beams, "--with", GREEDY).stdout
    assert all(f"{number}. " in table for number in (1, 2, 3))


def test_columns_stand_side_by_side(server_url: str, client: TestClient) -> None:
    shown = run(server_url, "--with", GREEDY, "--with", WARM).stdout
    headings = next(line for line in shown.splitlines() if line.count("tested") == 2)
    assert headings.index("tested") < headings.rindex("tested")
    assert shown.count("Tokens/s ") == 2
    assert "temperature=1.5 seed=3" in shown
    words = answer(client, temperature=0, max_new_tokens=6)["message"]["content"].split()
    assert words[0] in shown


def test_a_narrow_terminal_gets_one_below_another(server_url: str) -> None:
    command = [sys.executable, "-m", "phi3_serve", "compare", "--url", server_url, "Who are you?"]
    command += [word for of_one in [GREEDY, WARM] * 3 for word in ("--with", of_one)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert len(re.findall(r"^tested, temperature=\S+ ", done.stdout, re.MULTILINE)) == 6
    figures = done.stdout.splitlines()[-12:]
    assert any("Probability of a" in line or "Probability" in line for line in figures)


def test_an_error_has_its_column_and_the_others_their_answers(server_url: str) -> None:
    result = run(server_url, "--with", "top_p=7", "--with", GREEDY, "--json")
    assert result.exit_code == 1
    wrong, right = json.loads(result.stdout)
    assert "top_p" in wrong["error"]
    assert wrong["texts"] == []
    assert right["error"] is None
    assert len(right["texts"]) == 1


def test_figures_are_drawn(server_url: str, tmp_path: Path) -> None:
    result = run(server_url, "--with", GREEDY, "--with", WARM, "--svg", str(tmp_path / "x.svg"))
    assert result.exit_code == 0, result.output
    svg = ElementTree.fromstring((tmp_path / "x.svg").read_text())
    texts = [element.text or "" for element in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("tested, temperature=0 max_new_tokens=6") == 4
    assert "Tokens of the answer" in texts
    assert "phi3-serve compare 'Who are you?'" in texts
    at = texts.index("Tokens of the answer")
    assert texts[at + 1 : at + 5] == ["tested, " + GREEDY, "6", "tested, " + WARM, "9"]


@pytest.mark.parametrize(
    ("given", "code", "message"),
    [
        ([], 2, "There is nothing to compare: give --with twice"),
        (["--with", GREEDY], 2, "There is nothing to compare"),
        (["--with", "temperature", "--with", GREEDY], 2, "temperature must be NAME=VALUE"),
        (["--with", "temprature=1", "--with", GREEDY], 2, "`temprature` is not a generate parameter"),
        (["--with", "stop='a", "--with", GREEDY], 2, "No closing quotation"),
        (["-m", "tested", "-m", "other"], 1, "Model other is not served here"),
        (["-m", "tested?x", "-m", "other"], 1, "Model tested?x is not served here"),
        (["-m", "a b", "-m", "other"], 1, "Model a b is not served here"),
    ],
)
def test_what_cannot_be_compared_is_refused(server_url: str, given: list[str], code: int, message: str) -> None:
    result = run(server_url, *given)
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in " ".join(result.stderr.split())


def test_a_server_that_is_not_there() -> None:
    result = run(f"http://127.0.0.1:{free_port()}", "--with", GREEDY, "--with", WARM)
    assert result.exit_code == 3
    assert "cannot be reached" in result.stderr


def test_settings_that_look_like_markup_are_shown_as_they_are(server_url: str) -> None:
    result = run(server_url, "--with", "stop_strings=[/INST] max_new_tokens=2", "--with", GREEDY)
    assert result.exit_code == 0, result.output
    assert "stop_strings=[/INST]" in result.stdout


def test_a_file_that_cannot_be_written_is_told_before_anyone_is_asked(tmp_path: Path) -> None:
    for name in (tmp_path / "none" / "x.svg", tmp_path):
        for command in (["compare", "Who?"], ["bench", "http"]):
            result = CliRunner().invoke(app, [*command, "--url", f"http://127.0.0.1:{free_port()}", "--svg", str(name)])
            assert result.exit_code == 2
            assert "cannot be written" in " ".join(result.output.replace("│", "").split())


def test_a_question_with_control_characters_is_drawn(server_url: str, tmp_path: Path) -> None:
    asked = ["compare", "--url", server_url, "Who\x07 are you?", "--with", GREEDY, "--with", WARM]
    result = CliRunner().invoke(app, [*asked, "--svg", str(tmp_path / "x.svg")])
    assert result.exit_code == 0, result.output
    assert "Who  are you?" in "".join(ElementTree.parse(tmp_path / "x.svg").getroot().itertext())
