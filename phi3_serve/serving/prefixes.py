"""Which replica has the start of a prompt or an adapter in memory, known from the requests that were sent to it."""

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from typing import Generic, TypeVar

from phi3_serve.core.generation_request import GenerationRequest
from phi3_serve.core.prompt import Conversation, Prompt, RawPrompt, TokenPrompt

CHARACTERS_PER_PIECE = 256  # about four blocks of the cache
TOKENS_PER_PIECE = 64
MAX_PIECES = 64  # of one prompt; later pieces do not affect routing
MAX_ENTRIES = 100_000  # about 20 MB
# Requests that a replica with the prefix may have more than the least loaded one. With more, waiting takes longer than
# computing the prefix again.
MAX_EXTRA_REQUESTS = 8

R = TypeVar("R", bound=Hashable)


def prefix_keys(request: GenerationRequest) -> list[int]:
    """A key of the session, then a key of each prefix of the prompt in whole pieces, the longest prefix first.

    Keys and values of a prompt depend on the adapters. The keys of the adapters come last.
    """
    keys, key = adapter_keys(request)[::-1], hash((request.model, _adapters(request)))
    for piece in _pieces(request.prompt):
        key = hash((key, piece))
        keys.append(key)
    if request.options.session is not None:
        keys.append(hash(("session", request.options.session)))
    return keys[::-1]


def adapter_keys(request: GenerationRequest) -> list[int]:
    """A key of each adapter that the request names."""
    return [hash(("adapter", request.model, adapter.name)) for adapter in request.adapters]


def _adapters(request: GenerationRequest) -> Hashable:
    return frozenset((adapter.name, adapter.strength) for adapter in request.adapters)


def _pieces(prompt: Prompt) -> list[Hashable]:
    if isinstance(prompt, TokenPrompt):
        ids, size = prompt.token_ids[: MAX_PIECES * TOKENS_PER_PIECE], TOKENS_PER_PIECE
        return [ids[at : at + size] for at in range(0, len(ids) - size + 1, size)]
    text = _text(prompt)[: MAX_PIECES * CHARACTERS_PER_PIECE]
    size = CHARACTERS_PER_PIECE
    return [text[at : at + size] for at in range(0, len(text) - size + 1, size)]


def _text(prompt: RawPrompt | Conversation) -> str:
    if isinstance(prompt, RawPrompt):
        return prompt.prefix + prompt.text
    return "".join(f"{message.role}: {message.content}\n" for message in prompt.messages)


class PrefixTable(Generic[R]):
    """The replica that each prefix, session and adapter was last sent to.

    The least recently used entry is dropped first.
    """

    def __init__(self) -> None:
        self._replica_of: OrderedDict[int, R] = OrderedDict()

    def choose(self, keys: list[int], loads: Mapping[R, int]) -> R:
        """The replica for a request with ``keys``: the first match that is not too busy, else the least loaded one.

        ``loads`` has the number of requests of each running replica.
        """
        max_load = min(loads.values()) + MAX_EXTRA_REQUESTS
        for key in keys:
            replica = self._replica_of.get(key)
            if replica is not None and loads.get(replica, max_load + 1) <= max_load:
                return replica
        return min(loads, key=lambda replica: loads[replica])

    def record(self, keys: list[int], replica: R) -> None:
        """Note that a request with ``keys`` was sent to ``replica``."""
        for key in reversed(keys):
            self._replica_of[key] = replica
            self._replica_of.move_to_end(key)
        while len(self._replica_of) > MAX_ENTRIES:
            self._replica_of.popitem(last=False)
