"""How many tokens a text has at least, without encoding it.

Encoding takes a second for a million and a half of characters, and the whole context may be a thousandth of them.
"""

import json

import tokenizers

_NUM_BYTES = 256
# Characters with the property White_Space of Unicode. A control token can swallow any number of them.
_WHITESPACE = (
    "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f"
    "\u205f\u3000"
)
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

    def of(self, text: str, enough: int) -> int:
        """A number of tokens that ``text`` has at least; 0 if that is not more than ``enough``, or not known."""
        if self._longest is None or len(text) <= enough * self._longest:
            return 0
        found = -(-(len(text) - sum(map(text.count, _WHITESPACE))) // self._longest)
        return found if found > enough else 0


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
