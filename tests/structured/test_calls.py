"""Forced calls of tools with random schemas: each is JSON that its schema allows."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest

from phi3_serve.api.tools.answer import read
from phi3_serve.api.tools.offer import Choice, Offer, Tool, offer
from phi3_serve.catalogue import EMBEDDED_TINY
from phi3_serve.core.event import Done, Event, Failed
from phi3_serve.core.generation_request import GenerationRequest, RequestOptions
from phi3_serve.core.prompt import Conversation, Message
from phi3_serve.errors import InvalidRequest
from phi3_serve.parameters import GenerationParameters
from phi3_serve.serving.replica import Replica
from tests.structured.fuzz import AT_ONCE, CLOSERS, MAX_NEW_TOKENS, _verdict, events, modes
from tests.structured.schemas import Schema, drawn
from tests.support import engine_of, local_replica, tokenizer_of

NUM_REQUESTS = 32  # for each model


@pytest.fixture(scope="module")
def tiny() -> Iterator[Replica]:
    replica = local_replica("phi-3-tiny", str(EMBEDDED_TINY), max_waiting=64)
    yield replica
    engine_of(replica).close()


def parameters_of(schema: Schema) -> dict[str, Any]:
    """The schema of arguments of which one has ``schema``, whose references begin at the root."""
    definitions = {"$defs": schema["$defs"]} if isinstance(schema, dict) and "$defs" in schema else {}
    return {"type": "object", "properties": {"value": schema}, "required": ["value"], **definitions}


def offered(draw: random.Random, schemas: list[Schema]) -> Offer:
    tools = [
        Tool(name=f"tool_{number}", parameters=parameters_of(schema), is_strict=draw.random() < 0.5, field="tools")
        for number, schema in enumerate(schemas)
    ]
    named = Choice(mode="required", names=[tools[0].name], is_named=True)
    found = offer(tools, draw.choice([Choice(mode="required"), named]), is_parallel=draw.random() < 0.5)
    assert found is not None
    return found


def request(replica: Replica, found: Offer, draw: random.Random, name: str) -> GenerationRequest:
    tokenizer = tokenizer_of(replica)
    closers = {ids[-1] for text in CLOSERS if (ids := tokenizer.encode_text(text))}
    bias = [([token], draw.choice([2.0, 6.0])) for token in closers]
    given = {"max_new_tokens": 2 * MAX_NEW_TOKENS, "sequence_bias": bias, **modes(draw)}
    return GenerationRequest(
        request_id=name,
        model="tested",
        prompt=Conversation((Message("user", "Call them."),)),
        parameters=GenerationParameters(**given),
        tool_calls=found.calls,
        stream=draw.random() < 0.5,
        options=RequestOptions(timeout_s=300),
    )


def verdicts(found: Offer, seen: list[Event]) -> list[str]:
    last = seen[-1]
    if isinstance(last, Failed):
        is_refused = isinstance(last.error, InvalidRequest) and (last.error.param or "").split(".")[0] == "tools"
        return ["refused" if is_refused else f"FAILED: {last.error}"]
    assert isinstance(last, Done)
    schemas = {tool.name: tool.parameters for tool in found.tools}
    kinds = []
    for completion in last.completions:
        is_whole = completion.sequence.finish_reason != "length"
        answer = read(completion.text, found.calls, is_whole=is_whole)
        if not is_whole:
            kinds.append("out of tokens")
            continue
        if answer.text or not 1 <= len(answer.calls) <= found.calls.max_calls:
            kinds.append(f"NO CALLS: {completion.text!r}")
        for call in answer.calls:
            kinds.append(_verdict(json.loads(json.dumps(schemas[call.name])), call.arguments, "stop"))
            if not call.is_complete:
                kinds.append(f"OPEN: {completion.text!r}")
    return kinds


async def run(replica: Replica, seed: int) -> Counter[str]:
    draw, schemas = random.Random(seed), drawn(seed)
    counts: Counter[str] = Counter()
    for first in range(0, NUM_REQUESTS, AT_ONCE):
        found = [offered(draw, list(islice(schemas, draw.randint(1, 3)))) for _ in range(AT_ONCE)]
        asked = [request(replica, one, draw, f"{seed}-{first + number}") for number, one in enumerate(found)]
        answers = await asyncio.gather(*(events(replica, one) for one in asked))
        counts.update(kind for pair in zip(found, answers, strict=True) for kind in verdicts(*pair))
    return counts


def check(counts: Counter[str]) -> None:
    assert not [kind for kind in counts if kind.split()[0].isupper() or kind.startswith("INVALID")], counts
    assert counts["valid"] > NUM_REQUESTS / 3, counts


@pytest.mark.slow
def test_random_schemas_on_a_random_model(replica: Replica) -> None:
    check(asyncio.run(run(replica, 0)))


@pytest.mark.slow
def test_random_schemas_on_the_tiny_model(tiny: Replica) -> None:
    check(asyncio.run(run(tiny, 1)))
