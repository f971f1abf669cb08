"""The tokenizer that the metadata of a GGUF file describe."""

from collections.abc import Mapping, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from phi3_serve.engine.checkpoint import check_vocabulary
from phi3_serve.errors import CheckpointError

MODEL = "llama"  # sentencepiece's BPE, that of Phi-3
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
# All other control tokens of Phi-3 swallow the spaces behind them. A file does not say so; llama.cpp
# (llama_vocab::impl::load) has the same list.
KEEP_SPACES = ("<unk>", "<s>", "<|endoftext|>")

_SPECIAL_TOKENS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}


class _Kind(IntEnum):
    """``gguf.TokenType``."""

    NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


def make_tokenizer(metadata: Mapping[str, Any], path: Path, *, vocab_size: int) -> PreTrainedTokenizerBase:
    """The tokenizer of the file at ``path``, with its chat template.

    Raises:
        CheckpointError: it is not Phi-3's, or it does not belong to the model. The message begins with the file.
    """
    model = metadata.get("tokenizer.ggml.model")
    tokens, kinds = (metadata.get(f"tokenizer.ggml.{part}") or [] for part in ("tokens", "token_type"))
    scores = metadata.get("tokenizer.ggml.scores") or []
    if model != MODEL:
        raise CheckpointError(f"{path}: tokenizer.ggml.model is {model!r}; only {MODEL!r} is served, which Phi-3 has")
    if not len(tokens) == len(kinds) == len(scores) > 0:
        raise CheckpointError(
            f"{path}: tokenizer.ggml has {len(tokens)} tokens, {len(kinds)} token_type and {len(scores)} scores; "
            "it must have as many of each"
        )
    backend = _backend(tokens, kinds, scores)
    check_vocabulary(backend, f"{path}: tokenizer.ggml.tokens", vocab_size=vocab_size)
    ids = {name: metadata.get(f"tokenizer.ggml.{key}") for name, key in _SPECIAL_TOKENS.items()}
    named = {name: tokens[i] for name, i in ids.items() if i is not None and i < len(tokens)}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        name_or_path=str(path),
        chat_template=metadata.get("tokenizer.chat_template"),
        add_bos_token=bool(metadata.get("tokenizer.ggml.add_bos_token", True)),  # as llama.cpp for this model
        add_eos_token=bool(metadata.get("tokenizer.ggml.add_eos_token", False)),
        clean_up_tokenization_spaces=False,
        **named,
    )


def _merges(pieces: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Every pair that makes a piece: the pair of the highest score first, and those of a piece by their ids.

    That is the order in Phi-3's tokenizer.json. The order of ``generate_merges`` of transformers 5.23 differs within a
    piece, and so would the ids of some texts.
    """
    merges: list[tuple[str, str]] = []
    for piece in sorted(pieces, key=lambda piece: -scores[pieces[piece]]):
        pairs = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        merges += sorted(
            (p for p in pairs if p[0] in pieces and p[1] in pieces), key=lambda p: (pieces[p[0]], pieces[p[1]])
        )
    return merges


def _backend(tokens: list[str], kinds: list[int], scores: list[float]) -> Tokenizer:
    """Phi-3's tokenizer.json over another vocabulary."""
    vocabulary = {t: i for i, (t, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind != _Kind.UNUSED}
    pieces = {t: i for t, i in vocabulary.items() if kinds[i] == _Kind.NORMAL}
    unknown = next((t for t, i in vocabulary.items() if kinds[i] == _Kind.UNKNOWN), None)
    backend = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=_merges(pieces, scores),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    for token, i in vocabulary.items():
        if kinds[i] in (_Kind.UNKNOWN, _Kind.CONTROL, _Kind.USER_DEFINED):
            is_special = kinds[i] != _Kind.USER_DEFINED
            added = AddedToken(token, rstrip=token not in KEEP_SPACES, normalized=False, special=is_special)
            backend.add_special_tokens([added]) if is_special else backend.add_tokens([added])
    return backend
