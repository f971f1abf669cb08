"""Which replica has the start of a prompt in memory: plain Python, told of every request that was sent."""

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from typing import Generic, TypeVar

from phi3_serve.core import Conversation, GenerationRequest, Prompt, RawPrompt, Special, TokenPrompt

CHARACTERS_OF_A_PIECE = 256  # some four blocks of the cache
TOKENS_OF_A_PIECE = 64
MAX_PIECES = 64  # of one prompt; the rest does not change where it goes
MAX_KNOWN = 100_000  # pieces; some 20 MB
# Requests more than the least loaded replica has: beyond, waiting costs more than computing the prefix anew.
WORTH = 8

R = TypeVar("R", bound=Hashable)


def keys_of(request: GenerationRequest) -> list[int]:
    """The session, then each start of the prompt by its whole pieces, the longest first."""
    keys, number = [], hash(request.model)
    for piece in _pieces(request.prompt):
        number = hash((number, piece))
        keys.append(number)
    if request.options.session is not None:
        keys.append(hash(("session", request.options.session)))
    return keys[::-1]


def _pieces(prompt: Prompt) -> list[Hashable]:
    if isinstance(prompt, TokenPrompt):
        ids, size = prompt.token_ids[: MAX_PIECES * TOKENS_OF_A_PIECE], TOKENS_OF_A_PIECE
        return [ids[at : at + size] for at in range(0, len(ids) - size + 1, size)]
    text = _text(prompt)[: MAX_PIECES * CHARACTERS_OF_A_PIECE]
    size = CHARACTERS_OF_A_PIECE
    return [text[at : at + size] for at in range(0, len(text) - size + 1, size)]


def _text(prompt: RawPrompt | Conversation) -> str:
    if isinstance(prompt, RawPrompt):
        return prompt.prefix + prompt.text
    return "".join(s.token if isinstance(s, Special) else s.text for s in prompt.segments)


class PrefixMemory(Generic[R]):
    """Where each start of a prompt was last sent; the least recently used is forgotten first."""

    def __init__(self) -> None:
        self._replica_of: OrderedDict[int, R] = OrderedDict()

    def choose(self, keys: list[int], loads: Mapping[R, int]) -> R:
        """The replica, of those in ``loads`` (requests that each has), that ``keys`` should go to."""
        least = min(loads.values())
        for key in keys:
            known = self._replica_of.get(key)
            if known is not None and loads.get(known, least + WORTH + 1) <= least + WORTH:
                return known
        return min(loads, key=lambda replica: loads[replica])

    def remember(self, keys: list[int], replica: R) -> None:
        """``keys`` were sent to ``replica``."""
        for key in reversed(keys):
            self._replica_of[key] = replica
            self._replica_of.move_to_end(key)
        while len(self._replica_of) > MAX_KNOWN:
            self._replica_of.popitem(last=False)
