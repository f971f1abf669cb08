"""Which replica a request goes to, where its prompt's start decides."""

from collections import Counter
from typing import Any

import pytest

from phi3_serve.core import GenerationRequest, Message, Prompt, RawPrompt, RequestOptions, TokenPrompt
from phi3_serve.parameters import GenerationParameters
from phi3_serve.serving import prefixes
from phi3_serve.serving.prefixes import WORTH, PrefixMemory, keys_of
from phi3_serve.text.template import render
from tests.api.kaito.test_chat import PROMPT

SYSTEM = "You are a patient teacher. " * 40


def asked(prompt: Prompt, session: str | None = None, model: str = "m") -> GenerationRequest:
    return GenerationRequest(
        request_id="r",
        model=model,
        prompt=prompt,
        parameters=GenerationParameters(),
        options=RequestOptions(session=session, timeout_s=1),
    )


def conversation(*turns: str) -> Prompt:
    roles: Any = ["user", "assistant"] * len(turns)
    said = [Message(role, text) for role, text in zip(roles, turns, strict=False)]
    return render([Message("system", SYSTEM), *said])


def test_keys_are_of_every_start_and_the_longest_comes_first() -> None:
    shared = keys_of(asked(RawPrompt(SYSTEM)))
    longer = keys_of(asked(RawPrompt(SYSTEM + "Why? " * 100)))
    assert len(shared) == len(SYSTEM) // 256
    assert longer[-len(shared) :] == shared
    assert len(longer) > len(shared)
    assert not set(shared) & set(keys_of(asked(RawPrompt("x" + SYSTEM))))
    assert not set(shared) & set(keys_of(asked(RawPrompt(SYSTEM), model="other")))
    assert keys_of(asked(RawPrompt(PROMPT))) == []  # too short to matter
    assert len(keys_of(asked(TokenPrompt(tuple(range(200)))))) == 3
    assert len(keys_of(asked(RawPrompt("y" * 10**6)))) == prefixes.MAX_PIECES


def test_a_session_comes_before_the_prompt() -> None:
    memory: PrefixMemory[str] = PrefixMemory()
    memory.remember(keys_of(asked(RawPrompt(SYSTEM))), "a")
    memory.remember(keys_of(asked(RawPrompt(PROMPT), session="s")), "b")
    assert memory.choose(keys_of(asked(RawPrompt(SYSTEM), session="s")), {"a": 0, "b": 0}) == "b"
    assert memory.choose(keys_of(asked(RawPrompt(SYSTEM), session="t")), {"b": 0, "a": 0}) == "a"


def test_the_longest_start_decides() -> None:
    memory: PrefixMemory[str] = PrefixMemory()
    memory.remember(keys_of(asked(conversation("one " * 100))), "a")
    memory.remember(keys_of(asked(conversation("two " * 100))), "b")
    going_on = conversation("one " * 100, "Yes.", "And then?")
    assert memory.choose(keys_of(asked(going_on)), {"a": 3, "b": 0}) == "a"


@pytest.mark.parametrize(("load", "chosen"), [(WORTH, "a"), (WORTH + 1, "b")])
def test_a_replica_with_much_more_to_do_is_passed_by(load: int, chosen: str) -> None:
    memory: PrefixMemory[str] = PrefixMemory()
    keys = keys_of(asked(RawPrompt(SYSTEM)))
    memory.remember(keys, "a")
    assert memory.choose(keys, {"a": load, "b": 0}) == chosen


def test_a_replica_that_is_gone_is_not_chosen() -> None:
    memory: PrefixMemory[str] = PrefixMemory()
    keys = keys_of(asked(RawPrompt(SYSTEM)))
    memory.remember(keys, "gone")
    assert memory.choose(keys, {"a": 2, "b": 1}) == "b"


def test_unrelated_prompts_spread_by_load() -> None:
    memory: PrefixMemory[str] = PrefixMemory()
    loads = Counter({"a": 0, "b": 0, "c": 0})
    for number in range(30):
        keys = keys_of(asked(RawPrompt(f"{number} " * 300)))
        chosen = memory.choose(keys, loads)
        memory.remember(keys, chosen)
        loads[chosen] += 1
    assert set(loads.values()) == {10}


def test_what_is_known_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefixes, "MAX_KNOWN", 50)
    memory: PrefixMemory[str] = PrefixMemory()
    for number in range(100):
        memory.remember([number], "a")
    assert memory.choose([0], {"a": 1, "b": 0}) == "b"
    assert memory.choose([99], {"a": 1, "b": 0}) == "a"
