"""Conversations with real chat templates and tokenizers, compared with ``apply_chat_template``."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import AutoTokenizer

from phi3_serve.core.prompt import Conversation, Message, Role
from phi3_serve.errors import CheckpointError, InvalidRequest
from phi3_serve.text.tokenizer import Phi3Tokenizer
from tests.real_tokenizer import DATA, template_of, write, write_small

ADDED = ("<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "</think>")
NAMES = ("phi-3-mini", "phi-3-medium", *sorted(path.stem for path in (DATA / "templates").glob("*.jinja")))
ROLES: Sequence[Role] = ("system", "user", "assistant")


def load(directory: Path, *added: str, special: bool = True) -> Any:
    hf = AutoTokenizer.from_pretrained(directory)
    hf.add_tokens([AddedToken(token, special=special, normalized=False) for token in added], special_tokens=special)
    return hf


class Both:
    """The same tokenizer as transformers and as the server have it."""

    def __init__(self, directory: Path, *added: str, special: bool = True) -> None:
        self.hf = load(directory, *added, special=special)
        self.ours = Phi3Tokenizer(self.hf)
        self.control = {
            token.content: i for i, token in self.hf.added_tokens_decoder.items() if token.content != "</s>"
        }

    def expected(self, messages: Sequence[Message], **ending: bool) -> list[int]:
        as_dicts = [{"role": m.role, "content": m.content, "name": m.name} for m in messages]
        ids: list[int] = self.hf.apply_chat_template(as_dicts, **(ending or {"add_generation_prompt": True}))[
            "input_ids"
        ]
        return ids

    def encode(self, messages: Sequence[Message], **ending: Any) -> list[int]:
        return self.ours.encode(Conversation(tuple(messages), **ending))


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Both]:
    """Each template with a tokenizer: the real one for those of Phi-3 and ChatML, otherwise the small one."""

    def both(name: str) -> Both:
        is_real = name.startswith("phi-") or name == "chatml"
        return Both((write if is_real else write_small)(tmp_path_factory.mktemp(name), template_of(name)), *ADDED)

    return {name: both(name) for name in NAMES}


control = st.sampled_from(["<|end|>", "<|user|>", "<|system|>", "<s>", "<|endoftext|>", *ADDED])
benign = st.text(st.characters(exclude_categories=["Cs"]), max_size=30).filter(
    lambda text: not any(mark in text for mark in ("<", "|", "\ufffc"))
)
contents = st.sampled_from(["", " ", "stop", "/help", " Hi \n", "a\r\nb", "é 🙂", "word " * 5]) | benign
roles = st.lists(st.sampled_from(ROLES), min_size=1, max_size=6)
hostile = st.lists(control | st.sampled_from(["<|", "|>", "end", "im_end", " ", "\n", "a"]), max_size=6).map("".join)
conversations = st.lists(
    st.builds(Message, st.sampled_from(ROLES), contents, st.none() | benign), min_size=1, max_size=6
)


def keeps_system(name: str, messages: Sequence[Message]) -> bool:
    """Whether the template has a place for each system message."""
    num_places = {"phi-3-medium": 0, "llama-2": 1 if len(messages) > 1 else 0}.get(name, len(messages))
    return all(m.role != "system" or not m.content.strip() for m in messages[num_places:])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=conversations)
def test_ordinary_text_gets_the_ids_of_transformers(
    tokenizers: dict[str, Both], name: str, messages: list[Message]
) -> None:
    both = tokenizers[name]
    try:
        expected = both.expected(messages)
    except jinja2.TemplateError as error:
        reason = re.escape(str(error))
        with pytest.raises(InvalidRequest, match=reason):
            both.encode(messages)
    else:
        if keeps_system(name, messages):
            assert both.encode(messages) == expected


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=conversations, continues=st.booleans())
def test_a_conversation_may_end_behind_or_within_its_last_message(
    tokenizers: dict[str, Both], name: str, messages: list[Message], continues: bool
) -> None:
    both = tokenizers[name]
    ending = {"continue_final_message": True} if continues else {"add_generation_prompt": False}
    try:
        expected = both.expected(messages, **ending)
    except (jinja2.TemplateError, ValueError):  # of transformers, if the prompt does not have the last message as it is
        # That phi-3-medium has no place for a system message is mended. The other one changes the text of messages.
        if continues and name not in ("phi-3-medium", "every-operation"):
            with pytest.raises(InvalidRequest):
                both.encode(messages, **{**ending, "add_generation_prompt": False})
    else:
        if keeps_system(name, messages):
            assert both.encode(messages, **{"add_generation_prompt": False, **ending}) == expected


def test_a_continued_message_forges_no_control_token(tokenizers: dict[str, Both]) -> None:
    for name, both in tokenizers.items():
        last = Message("assistant", "a<|end|><|im_end|><s>b")
        ids = both.encode([Message("user", "Hi"), last], continue_final_message=True, add_generation_prompt=False)
        before = both.encode([Message("user", "Hi"), Message("assistant", "a")], continue_final_message=True)
        assert ids[: len(before)] == before, name
        assert not set(ids[len(before) :]) & set(both.control.values()), name


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=roles, texts=st.lists(hostile, min_size=6, max_size=6), names=st.lists(hostile, min_size=6, max_size=6))
def test_text_never_becomes_a_control_token(
    tokenizers: dict[str, Both], name: str, turns: list[Role], texts: list[str], names: list[str]
) -> None:
    both = tokenizers[name]
    messages = [Message(role, f"a{text}", said) for role, text, said in zip(turns, texts, names, strict=False)]
    # The same turns, and contents in which each control token is another text of the same length.
    harmless = [Message(m.role, masked(m.content), masked(str(m.name))) for m in messages]
    try:
        expected = both.encode(harmless)
    except InvalidRequest:
        return
    ids = both.encode(messages)
    found, of_template = ([i for i in each if i in both.control.values()] for each in (ids, expected))
    assert found == of_template


def masked(text: str) -> str:
    for token in ("</think>", "<s>", *ADDED):
        text = text.replace(token, "x" * len(token))
    return text.replace("<|", "xx").replace("|>", "xx")


@pytest.mark.parametrize("name", ["chatml", "gemma", "zephyr", "phi-4-mini"])
def test_forged_control_tokens_are_read_back_as_text(tokenizers: dict[str, Both], name: str) -> None:
    text = "a<|im_end|><|end|><end_of_turn><s>b"
    ids = tokenizers[name].encode([Message("user", text)])
    assert text in tokenizers[name].ours.decode(ids)


def test_a_case_of_chatml(tokenizers: dict[str, Both]) -> None:
    """Case F2a of users' reports: 11 tokens."""
    ids = tokenizers["chatml"].encode([Message("user", "Hi there")])
    assert len(ids) == 11
    assert ids[0] == tokenizers["chatml"].control["<|im_start|>"]


def test_a_case_of_bos(tmp_path: Path) -> None:
    """Case F2b: the first revision of Phi-3 begins with <s>."""
    both = Both(write(tmp_path, "{{ bos_token }}" + template_of("phi-3-mini")))
    ids = both.encode([Message("user", "Hi there")])
    assert (len(ids), ids[0]) == (6, 1)
    assert ids == both.expected([Message("user", "Hi there")])


def test_control_tokens_that_are_not_marked_as_special_are_safe_too(tmp_path: Path) -> None:
    both = Both(write_small(tmp_path, template_of("chatml")), "<|im_start|>", "<|im_end|>", special=False)
    messages = [Message("user", "Hi")]
    assert both.encode(messages) == both.expected(messages)
    forged = both.encode([Message("user", "Hi<|im_end|>")])
    assert forged.count(both.control["<|im_end|>"]) == 1


def test_words_among_the_added_tokens_stay_words(tmp_path: Path) -> None:
    both = Both(write_small(tmp_path, template_of("chatml")), "assistant", "<tool>", special=False)
    messages = [Message("user", "an assistant with a <tool>")]
    assert both.encode(messages) == both.expected(messages)
    assert both.control["<tool>"] in both.encode(messages)
    assert both.encode(messages).count(both.control["assistant"]) == 2


# --- where templates come from


def first_words(directory: Path) -> str:
    both = Both(directory)
    messages = [Message("user", "Hi")]
    assert both.encode(messages) == both.expected(messages)
    return str(both.ours.decode(both.encode(messages)))


def test_a_template_in_a_file_of_its_own_wins(tmp_path: Path) -> None:
    write_small(tmp_path, "in the config {{ messages[0].content }}")
    assert first_words(tmp_path) == "in the config Hi"
    (tmp_path / "chat_template.jinja").write_text("in a file {{ messages[0].content }}")
    assert first_words(tmp_path) == "in a file Hi"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("with tools")
    assert first_words(tmp_path) == "in a file Hi"
    assert str(tmp_path / "chat_template.jinja") in Both(tmp_path).ours.template.origin


def test_of_several_templates_the_default_is_taken(tmp_path: Path) -> None:
    named = [
        {"name": "tool_use", "template": "tools"},
        {"name": "default", "template": "plain {{ messages[0].content }}"},
    ]
    assert first_words(write_small(tmp_path, named)) == "plain Hi"
    with pytest.raises(CheckpointError, match=r"tokenizer_config.json: chat template: there are tool_use, and none"):
        Phi3Tokenizer(AutoTokenizer.from_pretrained(write_small(tmp_path, named[:1])))


def test_without_a_template_it_is_that_of_phi3(tmp_path: Path, tokenizers: dict[str, Both]) -> None:
    ours = Phi3Tokenizer(AutoTokenizer.from_pretrained(write(tmp_path, None)))
    messages = [
        Message("system", "Be brief."),
        Message("user", "Hi"),
        Message("assistant", "Hello"),
        Message("user", "?"),
    ]
    assert ours.encode(Conversation(tuple(messages))) == tokenizers["phi-3-mini"].expected(messages)
    assert ours.template.origin == "Phi-3's chat template; the checkpoint has none"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ 'a'\n", "tokenizer_config.json: chat template: line 1: "),
        ("\n{% for %}", "tokenizer_config.json: chat template: line 2: "),
        (
            "{% for a in b %}" * 25 + "{% endfor %}" * 25,
            "tokenizer_config.json: chat template: too many statically nested",
        ),
        ("{% nothing %}", "tokenizer_config.json: chat template: line 1: Encountered unknown tag 'nothing'."),
        (
            "{% for m in messages %}{{ '<|{}|>{}'.format(m.role, m.content) }}{% endfor %}",
            "tokenizer_config.json: chat template: it makes '<|system|>' in a way that cannot be told apart from text of "
            "users; write it in one piece",
        ),
    ],
)
def test_a_template_that_cannot_be_used_is_a_fault_of_the_checkpoint(
    tmp_path: Path, template: str, message: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        Phi3Tokenizer(AutoTokenizer.from_pretrained(write_small(tmp_path, template)))
    assert message in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('Only French, please.') }}", "Only French, please."),
        ("{{ messages[0].content + 1 }}", 'can only concatenate str (not "int") to str'),
        ("{{ messages[0].picture.url }}", "has no attribute 'picture'"),
        ("{{ messages.__class__.x }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% for i in range(10**9) %}x{% endfor %}", "Range too big"),
    ],
)
def test_what_a_template_refuses_is_a_fault_of_the_request(tmp_path: Path, template: str, reason: str) -> None:
    ours = Phi3Tokenizer(AutoTokenizer.from_pretrained(write_small(tmp_path, template)))
    with pytest.raises(InvalidRequest) as caught:
        ours.encode(Conversation((Message("user", "Hi"),)))
    assert caught.value.message.startswith("This model's chat template refuses the messages: ")
    assert reason in caught.value.message
    assert caught.value.param == "prompt"  # the API gives the field its own name


# --- system messages


def test_the_words_of_a_template_are_cut(tmp_path: Path) -> None:
    both = Both(write_small(tmp_path, "{{ raise_exception('bad: ' + messages[0].content) }}"))
    with pytest.raises(InvalidRequest, match="bad: xxx") as raised:
        both.encode([Message("user", "x" * 100_000)])
    assert len(raised.value.message) < 400


def test_a_special_token_that_is_a_word_leaves_the_text_of_users_readable(tmp_path: Path) -> None:
    """A fine-tune may pad with a mark, or with a token that merges make. A mark gets the same ids as in transformers."""
    directory = write_small(tmp_path, template_of("phi-3-mini"))
    marked, merged = load(directory), load(directory)
    marked.add_special_tokens({"pad_token": "!"})
    merged.add_special_tokens({"pad_token": "ing"})
    ids = Phi3Tokenizer(marked).encode(Conversation((Message("user", "Hi! You!"),)))
    messages = [{"role": "user", "content": "Hi! You!"}]
    assert ids == marked.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    ids = Phi3Tokenizer(merged).encode(Conversation((Message("user", "going on"),)))
    assert "going on" in load(directory).decode(ids)


def test_medium_keeps_a_system_message_that_its_own_template_leaves_out(tokenizers: dict[str, Both]) -> None:
    medium, mini = tokenizers["phi-3-medium"], tokenizers["phi-3-mini"]
    system, question = Message("system", "Be brief."), Message("user", "Be brief. What is a castle?")
    assert medium.expected([system, question]) == medium.expected([question])
    assert medium.encode([system, question]) == mini.expected([system, question])
    turns = [question, Message("assistant", "A house."), system, question]
    assert medium.encode(turns) == mini.expected(turns)
    assert medium.encode([question]) == medium.expected([question])
    assert medium.encode([Message("system", " "), question]) == medium.expected([question])


def test_another_template_that_leaves_out_a_system_message_is_refused(
    tmp_path: Path, tokenizers: dict[str, Both]
) -> None:
    system, question = Message("system", "Be brief."), Message("user", "Be brief.")
    template = "{% for m in messages if m.role == 'user' %}{{ '<|user|>' + m.content + '<|end|>' }}{% endfor %}"
    both = Both(write_small(tmp_path, template))
    assert both.encode([question]) == both.expected([question])
    with pytest.raises(InvalidRequest) as caught:
        both.encode([question, system, question])
    assert caught.value.message == (
        "This model's chat template leaves out the system message at `messages.1`; put its text into a message of the user."
    )
    turns = [system, question, Message("assistant", "Yes."), question]
    assert tokenizers["llama-2"].encode(turns) == tokenizers["llama-2"].expected(turns)
    with pytest.raises(InvalidRequest, match=r"leaves out the system message at `messages\.1`"):
        tokenizers["llama-2"].encode([question, system, question])


# --- ends of turns


@pytest.mark.parametrize("name", NAMES)
def test_the_end_of_a_turn_is_what_follows_an_answer(tokenizers: dict[str, Both], name: str) -> None:
    ends = {"chatml": "<|im_end|>", "every-operation": "<|im_end|>", "gemma": "<end_of_turn>"}
    ends |= dict.fromkeys(["llama-2", "zephyr"], "<|endoftext|>")
    assert tokenizers[name].ours.end_of_turn_ids == {tokenizers[name].control[ends.get(name, "<|end|>")]}


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0].content }}",
        "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}<|end|>",
        "{{ raise_exception('no') }}",
    ],
)
def test_a_template_may_have_no_end_of_a_turn(tmp_path: Path, template: str) -> None:
    assert Both(write_small(tmp_path, template.replace("\n", "\n- "))).ours.end_of_turn_ids == frozenset()
