"""Random JSON schemas: every answer that is finished parses and validates, however its tokens are chosen.

``python -m tests.structured.fuzz NUM_SCHEMAS [SEED]`` (``make fuzz-schemas``: 2,000); 100 are in ``make test-all``. Half of
the schemas go to phi-3-tiny, half to a random checkpoint. ``python -m tests.structured.fuzz CHECKOUT`` takes the schemas
of a checkout of the public test suite instead.
"""

import asyncio
import json
import random
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from datetime import datetime, time
from decimal import Decimal, InvalidOperation, localcontext
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema

from phi3_serve.catalogue import EMBEDDED_TINY
from phi3_serve.core.event import Delta, Done, Event, Failed
from phi3_serve.core.generation_request import GenerationRequest, RequestOptions
from phi3_serve.core.prompt import Conversation, Message, Prompt, RawPrompt
from phi3_serve.errors import InvalidRequest
from phi3_serve.parameters import GenerationParameters
from phi3_serve.serving.replica import Replica
from tests.random_checkpoint import Shape, make
from tests.structured.schemas import Schema, drawn, of_suite
from tests.support import engine_of, local_replica, tokenizer_of

AT_ONCE = 16
MAX_NEW_TOKENS = 250
CLOSERS = ('"', "}", "]", '"}', ",")
FORMATS = jsonschema.Draft202012Validator.FORMAT_CHECKER
LABEL = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?")
DURATION = re.compile(r"P(?!$)(\d+Y)?(\d+M)?(\d+W)?(\d+D)?(T(?=\d)(\d+H)?(\d+M)?(\d+S)?)?")


def is_date_time(text: object) -> bool:
    """RFC 3339, section 5.6."""
    return not isinstance(text, str) or (
        text[10:11] in ("t", "T") and datetime.fromisoformat(text.upper()).tzinfo is not None
    )


def is_time(text: object) -> bool:
    """RFC 3339, section 5.6."""
    return not isinstance(text, str) or time.fromisoformat(text.upper()).tzinfo is not None


def is_hostname(text: object) -> bool:
    """RFC 1123, section 2.1."""
    return not isinstance(text, str) or (len(text) <= 253 and all(map(LABEL.fullmatch, text.split("."))))


def is_uri(text: object) -> bool:
    """RFC 3986, roughly."""
    if not isinstance(text, str):
        return True
    urlsplit(text)
    return re.fullmatch(r"[a-zA-Z][a-zA-Z0-9+.-]*:[!#-;=?-\[\]_a-z~]*", text) is not None


def is_duration(text: object) -> bool:
    """RFC 3339, appendix A."""
    return not isinstance(text, str) or DURATION.fullmatch(text) is not None


# Those that jsonschema checks only with further packages.
for name, is_of_format in {
    "date-time": is_date_time,
    "time": is_time,
    "hostname": is_hostname,
    "uri": is_uri,
    "duration": is_duration,
}.items():
    FORMATS.checks(name, ValueError)(is_of_format)


def modes(draw: random.Random) -> dict[str, Any]:
    """How tokens are chosen."""
    return draw.choice(
        [
            {"do_sample": False},
            {"do_sample": False, "prompt_lookup_num_tokens": 8},
            {"do_sample": True, "temperature": 1.0, "top_k": 0},
            {"do_sample": True, "temperature": 0.7, "top_k": 10, "num_return_sequences": 2},
            {"do_sample": True, "top_p": 0.9, "top_k": 0, "seed": draw.randrange(1000), "repetition_penalty": 1.1},
            {"do_sample": False, "num_beams": 3, "early_stopping": True},
            {"do_sample": True, "num_beams": 2, "top_k": 5},
            {"do_sample": False, "num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0},
        ]
    )


def request(replica: Replica, schema: Schema, draw: random.Random, name: str) -> GenerationRequest:
    """A request for JSON of ``schema``. The tokens that close a value are more likely than the model finds them."""
    tokenizer = tokenizer_of(replica)
    closers = {ids[-1] for text in CLOSERS if (ids := tokenizer.encode_text(text))}
    question = f"Give me JSON, such as {json.dumps(schema)[:60]}"
    given = {
        "max_new_tokens": MAX_NEW_TOKENS,
        "sequence_bias": [([token], draw.choice([2.0, 6.0])) for token in closers],
        "json_schema": schema if draw.random() < 0.8 else json.dumps(schema),
        **modes(draw),
    }
    prompts: list[Prompt] = [
        Conversation((Message("user", question),)),
        RawPrompt(f"<|user|> {question}<|end|><|assistant|>"),
        RawPrompt(question),
    ]
    return GenerationRequest(
        request_id=name,
        model="tested",
        prompt=draw.choice(prompts),
        parameters=GenerationParameters(**given),
        stream=draw.random() < 0.5,
        options=RequestOptions(timeout_s=300),
    )


async def events(replica: Replica, asked: GenerationRequest) -> list[Event]:
    """All events of a request."""
    return [event async for event in replica.generate(asked)]


def verdicts(schema: Schema, seen: list[Event], asked: GenerationRequest) -> list[str]:
    """What became of each answer; those in capitals must not be."""
    last = seen[-1]
    if isinstance(last, Failed):
        is_refused = isinstance(last.error, InvalidRequest) and last.error.param in (
            "json_schema",
            "num_return_sequences",
        )
        return [f"refused: {_in_short(last.error.message)}" if is_refused else f"FAILED: {last.error}"]
    assert isinstance(last, Done)
    streamed = "".join(event.text for event in seen if isinstance(event, Delta))
    if streamed and streamed != last.completions[0].text:
        return [f"STREAMED {streamed!r} and not {last.completions[0].text!r}"]
    return [_verdict(schema, c.text, c.sequence.finish_reason) for c in last.completions]


def _verdict(schema: Schema, text: str, finish_reason: str) -> str:
    if finish_reason == "length":
        return "out of tokens"
    try:
        with localcontext(prec=1000):
            jsonschema.Draft202012Validator(_exact(json.dumps(schema)), format_checker=FORMATS).validate(_exact(text))
    except (ValueError, jsonschema.ValidationError) as error:
        return f"INVALID: {text!r}: {str(error)[:300]}"
    return "valid"


def _exact(text: str) -> Any:
    """What JSON says, without rounding: 52315.7942 is a multiple of 0.0001."""
    return json.loads(text, parse_float=_decimal)


def _decimal(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:  # an exponent beyond those of Decimal; one of its own is as good for a comparison
        mantissa, exponent = text.lower().split("e")
        return Decimal(f"{mantissa}e{'-' if exponent.startswith('-') else ''}1000")


def _in_short(message: str) -> str:
    """A reason without its place and values."""
    return re.sub(r" at #\S*:", ":", re.sub(r"'.*?'|\".*?\"|/\^?.*/", "...", message))[:90]


async def run(replica: Replica, schemas: Iterable[Schema], seed: int) -> Counter[str]:
    """The verdicts on the answers to ``schemas``, of which several are answered at once."""
    draw = random.Random(seed)
    counts: Counter[str] = Counter()
    rest = iter(schemas)
    while some := list(islice(rest, AT_ONCE)):
        asked = [request(replica, schema, draw, f"{seed}-{number}") for number, schema in enumerate(some)]
        answers = await asyncio.gather(*(events(replica, one) for one in asked))
        for schema, one, seen in zip(some, asked, answers, strict=True):
            for found in verdicts(schema, seen, one):
                counts[found.partition(":")[0]] += 1
                if found.split()[0].isupper():
                    print(f"\n{json.dumps(schema)}\n  {one.parameters.given()}\n  {found}", flush=True)
                elif found.startswith("refused"):
                    counts[f"  {found}"] += 1
    return counts


def is_good(counts: Counter[str]) -> bool:
    """Whether no answer is wrong, and most are finished."""
    refused = counts["refused"]
    return (
        not any(name.split()[0].isupper() for name in counts)
        and counts["valid"] > counts["out of tokens"]
        and refused < 0.2 * (refused + counts["valid"] + counts["out of tokens"])
    )


def main(argument: str, seed: int) -> int:
    """1 if an answer is wrong, or few are finished."""
    is_suite = not argument.isdigit()
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as directory:
        make(Path(directory), Shape(num_layers=3), seed=7)
        for number, source in enumerate((str(EMBEDDED_TINY), directory)):
            replica = local_replica("tested", source, max_waiting=64)
            some = of_suite(Path(argument)) if is_suite else islice(drawn(seed + number), -(-int(argument) // 2))
            counts = asyncio.run(run(replica, some, seed + number))
            print(source, dict(counts.most_common()), flush=True)
            total += counts
            engine_of(replica).close()
    return 0 if is_good(total) or (is_suite and not any(name.split()[0].isupper() for name in total)) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0))
