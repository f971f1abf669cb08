"""Which replica a request goes to with ``routing: prefix``."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

from phi3_serve.core.adapter import AdapterChoice
from phi3_serve.core.generation_request import GenerationRequest, RequestOptions
from phi3_serve.core.prompt import Conversation, Message, Prompt, RawPrompt, TokenPrompt
from phi3_serve.parameters import GenerationParameters
from phi3_serve.serving import prefixes
from phi3_serve.serving.prefixes import MAX_EXTRA_REQUESTS, PrefixTable, adapter_keys, prefix_keys
from tests.api.kaito.test_chat import PROMPT

NO_ADAPTERS: Mapping[str, float] = {}
SYSTEM = "You are a patient teacher. " * 40


def asked(
    prompt: Prompt, session: str | None = None, model: str = "m", adapters: Mapping[str, float] = NO_ADAPTERS
) -> GenerationRequest:
    return GenerationRequest(
        request_id="r",
        model=model,
        adapters=tuple(AdapterChoice(name, strength) for name, strength in adapters.items()),
        prompt=prompt,
        parameters=GenerationParameters(),
        options=RequestOptions(session=session, timeout_s=1),
    )


def conversation(*turns: str) -> Prompt:
    roles: Any = ["user", "assistant"] * len(turns)
    said = [Message(role, text) for role, text in zip(roles, turns, strict=False)]
    return Conversation((Message("system", SYSTEM), *said))


def test_keys_are_of_every_start_and_the_longest_comes_first() -> None:
    shared = prefix_keys(asked(RawPrompt(SYSTEM)))
    longer = prefix_keys(asked(RawPrompt(SYSTEM + "Why? " * 100)))
    assert len(shared) == len(SYSTEM) // 256
    assert longer[-len(shared) :] == shared
    assert len(longer) > len(shared)
    assert not set(shared) & set(prefix_keys(asked(RawPrompt("x" + SYSTEM))))
    assert not set(shared) & set(prefix_keys(asked(RawPrompt(SYSTEM), model="other")))
    assert prefix_keys(asked(RawPrompt(PROMPT))) == []  # too short to matter
    assert len(prefix_keys(asked(TokenPrompt(tuple(range(200)))))) == 3
    assert len(prefix_keys(asked(RawPrompt("y" * 10**6)))) == prefixes.MAX_PIECES


def test_a_session_comes_before_the_prompt() -> None:
    table: PrefixTable[str] = PrefixTable()
    table.record(prefix_keys(asked(RawPrompt(SYSTEM))), "a")
    table.record(prefix_keys(asked(RawPrompt(PROMPT), session="s")), "b")
    assert table.choose(prefix_keys(asked(RawPrompt(SYSTEM), session="s")), {"a": 0, "b": 0}) == "b"
    assert table.choose(prefix_keys(asked(RawPrompt(SYSTEM), session="t")), {"b": 0, "a": 0}) == "a"


def test_the_longest_start_decides() -> None:
    table: PrefixTable[str] = PrefixTable()
    table.record(prefix_keys(asked(conversation("one " * 100))), "a")
    table.record(prefix_keys(asked(conversation("two " * 100))), "b")
    going_on = conversation("one " * 100, "Yes.", "And then?")
    assert table.choose(prefix_keys(asked(going_on)), {"a": 3, "b": 0}) == "a"


def test_a_prefix_belongs_to_its_adapters_and_strengths() -> None:
    def prefixes_of(**adapters: float) -> set[int]:
        request = asked(RawPrompt(SYSTEM), adapters=adapters)
        return set(prefix_keys(request)) - set(adapter_keys(request))

    plain, poet = prefixes_of(), prefixes_of(poet=0.5)
    assert len(plain) == len(poet) > 0
    assert not plain & poet
    assert not poet & prefixes_of(poet=0.6)
    assert prefixes_of(poet=0.5, pirate=1) == prefixes_of(pirate=1, poet=0.5)


def test_an_adapter_decides_where_no_prefix_is_known() -> None:
    table: PrefixTable[str] = PrefixTable()
    table.record(prefix_keys(asked(RawPrompt(SYSTEM), adapters={"poet": 1})), "a")
    table.record(prefix_keys(asked(RawPrompt(PROMPT), adapters={"pirate": 1})), "b")
    other = RawPrompt("x" + SYSTEM)
    assert table.choose(prefix_keys(asked(other, adapters={"poet": 0.3})), {"b": 0, "a": 3}) == "a"
    assert table.choose(adapter_keys(asked(other, adapters={"pirate": 1})), {"a": 0, "b": 3}) == "b"
    assert table.choose(prefix_keys(asked(other, adapters={"pirate": 1})), {"a": 0, "b": MAX_EXTRA_REQUESTS + 1}) == "a"
    assert table.choose(prefix_keys(asked(other, model="other", adapters={"pirate": 1})), {"a": 0, "b": 3}) == "a"
    assert (
        table.choose(prefix_keys(asked(RawPrompt(SYSTEM), adapters={"pirate": 1, "poet": 1})), {"c": 0, "b": 3, "a": 3})
        == "b"
    )


def test_without_adapters_nothing_is_preferred_by_adapters() -> None:
    assert adapter_keys(asked(RawPrompt(SYSTEM), session="s")) == []


@pytest.mark.parametrize(("load", "chosen"), [(MAX_EXTRA_REQUESTS, "a"), (MAX_EXTRA_REQUESTS + 1, "b")])
def test_a_replica_with_much_more_to_do_is_passed_by(load: int, chosen: str) -> None:
    table: PrefixTable[str] = PrefixTable()
    keys = prefix_keys(asked(RawPrompt(SYSTEM)))
    table.record(keys, "a")
    assert table.choose(keys, {"a": load, "b": 0}) == chosen


def test_a_replica_that_is_gone_is_not_chosen() -> None:
    table: PrefixTable[str] = PrefixTable()
    keys = prefix_keys(asked(RawPrompt(SYSTEM)))
    table.record(keys, "gone")
    assert table.choose(keys, {"a": 2, "b": 1}) == "b"


def test_unrelated_prompts_spread_by_load() -> None:
    table: PrefixTable[str] = PrefixTable()
    loads = Counter({"a": 0, "b": 0, "c": 0})
    for number in range(30):
        keys = prefix_keys(asked(RawPrompt(f"{number} " * 300)))
        chosen = table.choose(keys, loads)
        table.record(keys, chosen)
        loads[chosen] += 1
    assert set(loads.values()) == {10}


def test_what_is_known_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefixes, "MAX_ENTRIES", 50)
    table: PrefixTable[str] = PrefixTable()
    for number in range(100):
        table.record([number], "a")
    assert table.choose([0], {"a": 1, "b": 0}) == "b"
    assert table.choose([99], {"a": 1, "b": 0}) == "a"
