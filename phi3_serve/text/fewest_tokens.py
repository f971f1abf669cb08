"""How many tokens a text has at least, without encoding it.

Encoding takes a second for a million and a half of characters, and the whole context may be a thousandth of them. It
also takes 200 bytes of memory for each token, and two million emoji have eight million tokens.
"""

import json
import math
import re
import sys
from collections.abc import Collection, Iterable

import numpy as np
import numpy.typing as npt
import tokenizers

_NUM_BYTES = 256
_MOST_BYTES = 4  # of a character in UTF-8
_UTF_8_LENGTHS = ((0x10000, 3), (0x800, 2), (0x80, 1))  # of the characters below each
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
        self._shares = _least_shares(vocabulary) if is_known else None  # tokens for each character
        self._swallowed = _swallowed(tokenizer.get_added_tokens_decoder().values())

    def of(self, text: str, enough: int) -> int:
        """A number of tokens that ``text`` has at least; 0 if that is not more than ``enough``, or not known."""
        if self._shares is None or _MOST_BYTES * len(text) <= enough:
            return 0
        if (found := self._sum_of_shares(text)) <= enough:
            return 0
        found -= self._sum_of_shares("".join(run[1] for run in self._swallowed.finditer(text)))
        return math.ceil(found) if found > enough else 0

    def _sum_of_shares(self, text: str) -> float:
        assert self._shares is not None  # noqa: S101 - `of` has returned before
        return float(self._shares[_code_points(text)].sum(dtype=np.float64))


def _least_shares(vocabulary: Iterable[str]) -> npt.NDArray[np.float32]:
    """The least part of a token that a character takes, [code points], rounded down.

    A token of n characters is n times 1/n. A character that no token has becomes its bytes, a token for each. A space
    may become any character, so it takes no more than one of the longest token.
    """
    longest: dict[str, int] = {}
    for token in vocabulary:
        for character in token:
            longest[character] = max(longest.get(character, 0), len(token))
    longest[" "] = max(longest.values())
    shares = np.full(sys.maxunicode + 1, _MOST_BYTES, np.float32)
    for end, num_bytes in _UTF_8_LENGTHS:
        shares[:end] = num_bytes
    exact = 1 / np.array(list(longest.values()), np.float64)
    rounded = exact.astype(np.float32)
    shares[_code_points("".join(longest))] = np.where(rounded > exact, np.nextafter(rounded, np.float32(0)), rounded)
    return shares


def _code_points(text: str) -> npt.NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.dtype("<u4"))


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
