"""Between text and token ids. Text in a conversation never becomes a control token.

A raw prompt goes through the checkpoint's tokenizer as it is. A conversation goes through a twin of it that
knows only the template's control tokens, under names drawn at random when it is made: text can spell
``<|end|>`` but not the twin's name for it, so it stays text, and everything else (the whitespace that a
control token swallows, the normaliser, the place of the space prefix) is the tokenizer's own work.
"""

import json
import re
import secrets
from collections.abc import Sequence

import tokenizers
from transformers import PreTrainedTokenizerBase

from phi3_serve.core import Conversation, RawPrompt, Special
from phi3_serve.errors import CheckpointError
from phi3_serve.text.detokenize import Detokenizer, TextStream
from phi3_serve.text.template import SPECIAL_TOKENS

_BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")


class Phi3Tokenizer:
    """A Phi-3 checkpoint's tokenizer. Its options never change, so threads may share it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        backend: tokenizers.Tokenizer = tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        names = {token: f"\N{OBJECT REPLACEMENT CHARACTER}{secrets.token_hex(16)}" for token in SPECIAL_TOKENS}
        self._tokenizer = backend
        self._names = names
        self._twin = _with_only(backend, names)
        self._to_real_id = {_id(self._twin, name): _id(backend, token) for token, name in names.items()}
        control_ids = {i for i, token in backend.get_added_tokens_decoder().items() if token.special}
        self._visible_ids = frozenset(backend.get_vocab().values()) - control_ids
        self._byte_ids = frozenset(i for token, i in backend.get_vocab().items() if _BYTE_TOKEN.fullmatch(token))

    def encode(self, prompt: RawPrompt | Conversation) -> list[int]:
        """The prompt's token ids."""
        if isinstance(prompt, RawPrompt):
            return self._tokenizer.encode(prompt.prefix + prompt.text).ids
        rendered = "".join(self._names[s.token] if isinstance(s, Special) else s.text for s in prompt.segments)
        twin_ids = self._twin.encode(rendered, add_special_tokens=False).ids
        return [self._to_real_id.get(i, i) for i in twin_ids]

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of ``token_ids`` without control tokens."""
        return self._tokenizer.decode(token_ids, skip_special_tokens=True)

    def detokenizer(self) -> Detokenizer:
        """A fresh detokenizer for one sequence."""
        return Detokenizer(self.decode, visible_ids=self._visible_ids, byte_ids=self._byte_ids)

    def stream(self, *, clean_up: bool) -> TextStream:
        """A fresh text stream for one answer."""
        return TextStream(self.detokenizer(), clean_up=clean_up)


def _with_only(tokenizer: tokenizers.Tokenizer, names: dict[str, str]) -> tokenizers.Tokenizer:
    """A copy of ``tokenizer`` whose only added tokens are those of ``names``, renamed."""
    description = json.loads(tokenizer.to_str())
    kept = [t for t in description["added_tokens"] if t["content"] in names]
    description["added_tokens"] = []
    description["post_processor"] = None
    description["truncation"] = description["padding"] = None
    twin = tokenizers.Tokenizer.from_str(json.dumps(description))
    twin.add_special_tokens(
        [
            tokenizers.AddedToken(
                names[t["content"]],
                single_word=t["single_word"],
                lstrip=t["lstrip"],
                rstrip=t["rstrip"],
                normalized=False,
            )
            for t in kept
        ]
    )
    return twin


def _id(tokenizer: tokenizers.Tokenizer, token: str) -> int:
    token_id = tokenizer.token_to_id(token)
    if token_id is None:
        raise CheckpointError(f"{token} is not in the tokenizer's vocabulary")
    return token_id
