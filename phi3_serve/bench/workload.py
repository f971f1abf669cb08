"""The requests of a benchmark: several kinds, drawn from a seed."""

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from phi3_serve.core.adapter import AppliedAdapter
from phi3_serve.core.engine_request import EngineRequest
from phi3_serve.parameter_defaults import CHAT_DEFAULTS
from phi3_serve.parameters import GenerationParameters
from phi3_serve.prepare import prepare
from phi3_serve.resolved_parameters import resolve

# The requests of the workload "exotic" use these in order.
EXOTIC: tuple[Mapping[str, Any], ...] = (
    {"repetition_penalty": 1.2},
    {"no_repeat_ngram_size": 3},
    {"bad_words_ids": [[5], [6, 7]]},
    {"stop_strings": ["never", "to be found"]},
    {"encoder_repetition_penalty": 1.3},
    {"encoder_no_repeat_ngram_size": 2},
    {"sequence_bias": [([10], 2.0), ([11, 12], -3.0)]},
    {"suppress_tokens": list(range(100, 200))},
    {"exponential_decay_length_penalty": (10, 1.01), "eos_token_id": [2]},
    {"do_sample": True, "typical_p": 0.9},
    {"do_sample": True, "top_p": 0.9, "top_k": 0},
    {"do_sample": True, "top_k": 10, "temperature": 0.7},
    {"do_sample": True, "min_p": 0.05, "seed": 1},
    {"do_sample": True, "eta_cutoff": 0.001, "top_h": 0.5},
    {"renormalize_logits": True, "remove_invalid_values": True},
    {"begin_suppress_tokens": [5, 6], "forced_eos_token_id": 2},
)

# An answer of the workload "structured" has more tokens than the benchmark asks for.
PEOPLE: Mapping[str, Any] = {
    "type": "array",
    "minItems": 1000,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 40},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "role": {"enum": ["admin", "editor", "reader"]},
            "tags": {"type": "array", "items": {"type": "string", "pattern": "^[a-z]+$"}, "maxItems": 4},
        },
        "required": ["name", "age", "role", "tags"],
        "additionalProperties": False,
    },
}

TIMEOUT_S = 3600.0
KINDS = ("plain", "sampled", "beams", "exotic", "structured")
# These are plain, but every request has an adapter, or every second one.
ADAPTED, HALF_ADAPTED = ADAPTED_KINDS = ("adapters", "half adapters")


@dataclass(frozen=True, slots=True)
class AdapterNumber:
    """``core.Adapter`` that stands for one of the process that answers."""

    number: int
    name: str = ""
    num_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Requests of one kind."""

    kind: str = "plain"  # plain (greedy), sampled (KAITO's defaults), beams (4), exotic, structured (JSON of a schema)
    prompt_tokens: int = 32
    new_tokens: int = 64
    num_adapters: int = 0  # that the requests of ADAPTED_KINDS take in turns

    def request(self, number: int, *, vocab_size: int, context: int) -> EngineRequest:
        """Request ``number``; prompts vary by a quarter in length and share no prefix."""
        draw = random.Random(number)  # noqa: S311 - prompts, not secrets
        length = draw.randint(self.prompt_tokens * 7 // 8, self.prompt_tokens * 9 // 8)
        request = prepare(
            f"{self.kind}-{number}-{time.monotonic_ns()}",
            [draw.randrange(100, vocab_size) for _ in range(length)],
            resolve(self._parameters(number)),
            context_length=context,
            timeout_s=TIMEOUT_S,
            stream=True,
        )
        return replace(request, adapters=self._adapters(number))

    def _adapters(self, number: int) -> tuple[AppliedAdapter, ...]:
        if self.kind not in ADAPTED_KINDS or (self.kind == HALF_ADAPTED and number % 2):
            return ()
        order = number // 2 if self.kind == HALF_ADAPTED else number
        return (AppliedAdapter(AdapterNumber(order % self.num_adapters), 1.0),)

    def _parameters(self, number: int) -> GenerationParameters:
        given: dict[str, Any] = {"max_new_tokens": self.new_tokens, "min_new_tokens": self.new_tokens}
        if self.kind == "sampled":
            return GenerationParameters(**given).over(CHAT_DEFAULTS)
        given |= {"do_sample": False}
        if self.kind == "beams":
            given |= {"num_beams": 4}
        if self.kind == "exotic":
            given |= EXOTIC[number % len(EXOTIC)]
        if self.kind == "structured":
            given |= {"json_schema": dict(PEOPLE), "min_new_tokens": 0, "eos_token_id": 2}
        return GenerationParameters(**given)
