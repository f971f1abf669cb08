import json
import stat
from pathlib import Path
from typing import Any

import pytest

from phi3_serve.errors import Phi3ServeError
from phi3_serve.terminal.conversation import Conversation
from phi3_serve.terminal.saved_conversations import SavedConversations

BODY: dict[str, Any] = {
    "model": "m",
    "messages": [{"role": "user", "content": "Grüße"}],
    "generate_kwargs": {"top_k": 3},
}


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    saved = SavedConversations(tmp_path / "new")
    assert saved.names() == []
    path = saved.save("first", BODY)
    assert path == tmp_path / "new" / "first.json"
    assert (stat.S_IMODE(path.stat().st_mode), stat.S_IMODE(path.parent.stat().st_mode)) == (0o600, 0o700)
    assert json.loads(path.read_text()) == BODY
    assert saved.load("first") == BODY
    assert saved.names() == ["first"]
    assert [found.name for found in path.parent.iterdir()] == ["first.json"]


def test_only_own_files_are_replaced(tmp_path: Path) -> None:
    SavedConversations(tmp_path).save("mine", BODY)
    later = SavedConversations(tmp_path)
    with pytest.raises(Phi3ServeError, match=r"mine\.json exists\. Save under another name"):
        later.save("mine", BODY)
    later.load("mine")
    later.save("mine", {**BODY, "model": "other"})
    assert later.load("mine")["model"] == "other"


def test_a_name_with_a_slash_is_a_path(tmp_path: Path) -> None:
    saved = SavedConversations(tmp_path / "unused")
    assert saved.save(f"{tmp_path}/here.json", BODY) == tmp_path / "here.json"
    assert saved.load(f"{tmp_path}/here.json") == BODY
    with pytest.raises(Phi3ServeError, match=r"gone/x: cannot be written: No such file or directory"):
        saved.save(f"{tmp_path}/gone/x", BODY)


@pytest.mark.parametrize("name", ["", ".", "..", "-x", "a b", "x" * 65, "ä"])
def test_other_names_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(Phi3ServeError, match="cannot be a name: 1 to 64 letters, digits"):
        SavedConversations(tmp_path).save(name, BODY)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no json", "is not a conversation: Invalid JSON"),
        ("[]", "is not a conversation: Input should be an object"),
        ('{"messages": []}', "is not a conversation: model: Field required"),
        ('{"model": "m", "messages": [{"role": "robot", "content": ""}]}', "is not a conversation: messages.0.role: "),
        ('{"model": "m", "messages": [], "stream": true}', "is not a conversation: stream: Extra inputs"),
    ],
)
def test_a_file_that_is_no_conversation_is_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(Phi3ServeError) as raised:
        SavedConversations(tmp_path).load("x")
    assert f"{tmp_path}/x.json {message}" in raised.value.message


def test_a_missing_one_is_answered_with_those_that_exist(tmp_path: Path) -> None:
    saved = SavedConversations(tmp_path)
    saved.save("b", BODY)
    saved.save("a", BODY)
    with pytest.raises(Phi3ServeError, match=r"c\.json does not exist; saved are: a, b\."):
        saved.load("c")


@pytest.mark.parametrize("system", [None, "Be kind."])
def test_a_conversation_is_what_it_was(system: str | None) -> None:
    before = Conversation("m", system, {"top_k": 3}, [{"role": "user", "content": "Hi"}])
    after = Conversation("other", "x")
    after.replace_by(json.loads(json.dumps(before.as_request())))
    assert after == before
