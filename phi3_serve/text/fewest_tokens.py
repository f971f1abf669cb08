"""How many tokens a text has at least, without encoding it.

Encoding takes a second for a million and a half of characters, and the whole context may be a thousandth of them.
"""

import json
import re
from collections.abc import Collection

import tokenizers

_NUM_BYTES = 256
_KEEPS_CHARACTERS = ("Prepend", "Metaspace")  # of normalizers and pre-tokenizers, as Phi-3's have them


class FewestTokens:
    """Counts for one tokenizer. Of one that may drop characters nothing is known."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        description = json.loads(tokenizer.to_str())
        vocabulary = tokenizer.get_vocab()
        model = description["model"]
        has_all_bytes = all(f"<0x{byte:02X}>" in vocabulary for byte in range(_NUM_BYTES))
        encodes_all = model["type"] == "BPE" and bool(model["byte_fallback"]) and has_all_bytes
        parts = [*_steps(description["normalizer"]), *_steps(description["pre_tokenizer"])]
        is_known = encodes_all and all(map(_keeps_characters, parts))
        self._longest = max(map(len, vocabulary)) if is_known else None  # characters of a token
        self._swallowed = _swallowed(tokenizer.get_added_tokens_decoder().values())

    def of(self, text: str, enough: int) -> int:
        """A number of tokens that ``text`` has at least; 0 if that is not more than ``enough``, or not known."""
        if self._longest is None or len(text) <= enough * self._longest:
            return 0
        num_swallowed = sum(len(run[1]) for run in self._swallowed.finditer(text))
        found = -(-(len(text) - num_swallowed) // self._longest)
        return found if found > enough else 0


def _swallowed(added: Collection[tokenizers.AddedToken]) -> re.Pattern[str]:
    """The whitespace, any number of characters, that ``added`` tokens may swallow; perhaps more than they do."""
    swallowing = [token for token in added if token.lstrip or token.rstrip]
    if any(token.lstrip or token.normalized or re.search(r"\s", token.content) for token in swallowing):
        return re.compile(r"(\s+)")
    spelled = "|".join(re.escape(token.content) for token in swallowing) or r"(?!)"
    return re.compile(rf"(?:{spelled})(\s+)")


def _steps(description: dict[str, object] | None) -> list[dict[str, object]]:
    """The parts of a sequence; one part alone, or none."""
    if description is None:
        return []
    if description["type"] != "Sequence":
        return [description]
    inner = description.get("normalizers") or description.get("pretokenizers")
    return inner if isinstance(inner, list) else []


def _keeps_characters(step: dict[str, object]) -> bool:
    if step["type"] != "Replace":
        return step["type"] in _KEEPS_CHARACTERS
    pattern = step["pattern"]
    return isinstance(pattern, dict) and pattern.get("String") == " " and bool(step["content"])
