"""The shape and the vocabulary of phi-3-tiny, and the writer of its checkpoint."""

import copy
from pathlib import Path
from random import Random
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import GenerationConfig, Phi3Config, Phi3ForCausalLM

from training import tokenizer as tiny_tokenizer
from training.curriculum import LESSONS
from training.dialogue import Draw, plain
from training.induction import write_induction_circuit

CONTEXT_LENGTH = 2048
NUM_MERGED = 1500
HIDDEN_SIZE = 256
INTERMEDIATE_SIZE = 704
NUM_LAYERS = 6
NUM_HEADS = 8

# Kinds with fewer dialogues in the corpus: made-up words and letters would fill the vocabulary with useless pieces.
_WITH_MADE_UP_WORDS = {"spelling", "reversing", "letters", "repeating", "unknown words"}


def begun(seed: int, start: str) -> tuple[Tokenizer, Any]:
    """The initial tokenizer and model of a training: new ones, or those of the checkpoint ``start``."""
    if not start:
        tokenizer = learn_vocabulary(seed)
        return tokenizer, new_model(tokenizer, seed)
    model: Any = Phi3ForCausalLM.from_pretrained(start, dtype=torch.float32)
    return Tokenizer.from_file(str(Path(start) / "tokenizer.json")), model


def learn_vocabulary(seed: int) -> Tokenizer:
    """A tokenizer trained on dialogues of every kind."""
    draw = Draw(Random(seed), exam=False)  # noqa: S311 (not a secret)
    corpus = [
        plain(turn.content)
        for lesson in LESSONS
        for _ in range(200 if lesson.kind in _WITH_MADE_UP_WORDS else 1500)
        for turn in lesson.dialogue(draw).turns
    ]
    alphabet = [chr(code) for code in range(0x21, 0x7F)] + ["\u2581"]
    return tiny_tokenizer.train(corpus, NUM_MERGED, single_marks=True, alphabet=alphabet)


def new_model(tokenizer: Tokenizer, seed: int) -> Any:
    """The untrained ``Phi3ForCausalLM`` in float32, typed Any because type checkers reject its methods."""
    end_of_text = tokenizer.token_to_id(tiny_tokenizer.END_OF_TEXT)
    config = Phi3Config(
        vocab_size=64 * -(-tokenizer.get_vocab_size() // 64),
        hidden_size=HIDDEN_SIZE,
        intermediate_size=INTERMEDIATE_SIZE,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=NUM_HEADS,
        num_key_value_heads=NUM_HEADS,
        max_position_embeddings=CONTEXT_LENGTH,
        original_max_position_embeddings=CONTEXT_LENGTH,
        sliding_window=None,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        bos_token_id=tokenizer.token_to_id(tiny_tokenizer.BOS),
        eos_token_id=end_of_text,
        pad_token_id=end_of_text,
    )
    torch.manual_seed(seed)
    model: Any = Phi3ForCausalLM(config)
    write_induction_circuit(model)
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=[end_of_text, tokenizer.token_to_id("<|assistant|>"), tokenizer.token_to_id("<|end|>")],
        pad_token_id=end_of_text,
    )
    return model


def write(model: Any, tokenizer: Tokenizer, directory: Path) -> None:
    """Write the checkpoint in bfloat16, with the files of a Phi-3 repository."""
    directory.mkdir(parents=True, exist_ok=True)
    tiny_tokenizer.save(tokenizer, directory, CONTEXT_LENGTH)
    copy.deepcopy(model).to("cpu", torch.bfloat16).save_pretrained(directory)
