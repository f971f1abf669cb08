"""A small tokenizer like Phi-3's: BPE with byte fallback, Phi-3's control tokens and chat template.

The files have the layout of ``microsoft/Phi-3-mini-4k-instruct``: a Llama BPE whose normaliser puts a space before the
text, byte tokens ``<0x00>`` to ``<0xFF>``, and control tokens after the vocabulary that absorb the whitespace after
them.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from phi3_serve.text.phi3_template import PHI3_TEMPLATE

UNK, BOS, EOS = "<unk>", "<s>", "</s>"
END_OF_TEXT = "<|endoftext|>"
# In the order of their ids: 32000 to 32010 in the real vocabulary.
CONTROL_TOKENS = (
    END_OF_TEXT,
    "<|assistant|>",
    "<|placeholder1|>",
    "<|placeholder2|>",
    "<|placeholder3|>",
    "<|placeholder4|>",
    "<|system|>",
    "<|end|>",
    "<|placeholder5|>",
    "<|placeholder6|>",
    "<|user|>",
)
BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))


def train(
    corpus: Iterable[str], num_merged: int, *, single_marks: bool = False, alphabet: Sequence[str] = ()
) -> Tokenizer:
    """A tokenizer with the byte and control tokens and at most ``num_merged`` tokens learned from ``corpus``.

    With ``single_marks`` each digit and punctuation mark is its own token, as most are in Llama's vocabulary. Each
    character of ``alphabet`` is a token even if the corpus lacks it.
    """
    learner = Tokenizer(BPE(unk_token=UNK))
    by_word = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    apart = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.Punctuation(behavior="isolated")]
    learner.pre_tokenizer = pre_tokenizers.Sequence([by_word, *apart]) if single_marks else by_word
    specials = [UNK, BOS, EOS, *BYTE_TOKENS]
    learner.train_from_iterator(
        corpus,
        BpeTrainer(
            vocab_size=len(specials) + num_merged,
            special_tokens=specials,
            initial_alphabet=list(alphabet),
            show_progress=False,
        ),
    )
    learned = json.loads(learner.to_str())["model"]
    merges = [tuple(merge) for merge in learned["merges"]]
    tokenizer = Tokenizer(BPE(vocab=learned["vocab"], merges=merges, unk_token=UNK, fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in (UNK, BOS)])
    tokenizer.add_special_tokens([AddedToken(EOS, normalized=False, rstrip=True)])
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, normalized=False)])
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, rstrip=True) for t in CONTROL_TOKENS[1:]])
    return tokenizer


def save(tokenizer: Tokenizer, directory: Path, context_length: int) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` with the keys of the Phi-3 repositories."""
    tokenizer.save(str(directory / "tokenizer.json"))
    config: dict[str, Any] = {
        "add_bos_token": False,
        "add_eos_token": False,
        "added_tokens_decoder": {
            str(token_id): {
                "content": token.content,
                "lstrip": token.lstrip,
                "normalized": token.normalized,
                "rstrip": token.rstrip,
                "single_word": token.single_word,
                "special": token.special,
            }
            for token_id, token in sorted(tokenizer.get_added_tokens_decoder().items())
        },
        "bos_token": BOS,
        "chat_template": PHI3_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": END_OF_TEXT,
        "legacy": False,
        "model_max_length": context_length,
        "pad_token": END_OF_TEXT,
        "padding_side": "left",
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": UNK,
        "use_default_system_prompt": False,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
