"""Checkpoints of Phi-3's architecture with random weights, for tests: any shape, and answers that are noise."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import GenerationConfig, Phi3Config, Phi3ForCausalLM

from training import tokenizer as tiny_tokenizer

NUM_MERGED = 384
CORPUS = """\
How to explain Internet for a medieval knight? What is the meaning of life? Imagine that every castle in the
kingdom keeps a scribe, and that every scribe can send a letter to any other scribe faster than a horse can
run. The letters travel along roads that nobody sees; at each crossing a herald reads the name on the letter
and points it to the next road. You ask a question in the morning, and before your armour is polished the
answers of a hundred libraries lie on your table. The meaning of life is a question that people have asked
for as long as there have been people. Some say it is to be kind, some say it is to learn, and some say it is
what you make of it. Hello! Hi, who are you? I am a small demonstration model. One, two, three, four, five,
six, seven, eight, nine, ten. Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday. The capital of
France is Paris. Yes, no, please, thank you. 0 1 2 3 4 5 6 7 8 9 10 20 100 + - = < > ( ) [ ] { } " ' : ; / \\
A B C D E F G H I J K L M N O P Q R S T U V W X Y Z a b c d e f g h i j k l m n o p q r s t u v w x y z
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The sizes of a Phi-3 model."""

    hidden_size: int = 32
    intermediate_size: int = 64
    num_layers: int = 2
    num_heads: int = 2
    num_kv_heads: int = 2
    context_length: int = 2048
    sliding_window: int | None = None
    long_context_length: int | None = None  # with it, RoPE is longrope from context_length up to this


def make(directory: Path, shape: Shape, *, seed: int = 0, max_shard_size: str = "5GB") -> None:
    """Write a checkpoint with weights drawn from ``seed``: config, generation config, weights, tokenizer."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = tiny_tokenizer.train(CORPUS.splitlines(), NUM_MERGED)
    tiny_tokenizer.save(tokenizer, directory, shape.long_context_length or shape.context_length)
    end_of_text, end, assistant = (
        tokenizer.token_to_id(t) for t in (tiny_tokenizer.END_OF_TEXT, "<|end|>", "<|assistant|>")
    )
    config = Phi3Config(
        vocab_size=64 * -(-tokenizer.get_vocab_size() // 64),
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        max_position_embeddings=shape.long_context_length or shape.context_length,
        original_max_position_embeddings=shape.context_length,
        sliding_window=shape.sliding_window,
        rope_parameters=_rope(shape),
        bos_token_id=tokenizer.token_to_id(tiny_tokenizer.BOS),
        eos_token_id=end_of_text,
        pad_token_id=end_of_text,
        # ten times the usual, so that random scores differ enough for greedy answers to be stable
        initializer_range=0.2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Phi3ForCausalLM(config)
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=[end_of_text, assistant, end],
        pad_token_id=end_of_text,
    )
    model.save_pretrained(directory, max_shard_size=max_shard_size)


def _rope(shape: Shape) -> dict[str, object]:
    if shape.long_context_length is None:
        return {"rope_type": "default", "rope_theta": 10_000.0}
    half = shape.hidden_size // shape.num_heads // 2
    return {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "short_factor": [1.0 + 0.05 * i for i in range(half)],
        "long_factor": [1.0 + 0.5 * i for i in range(half)],
    }
