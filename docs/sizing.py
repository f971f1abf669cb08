"""The tables of sizing.md, from the sizes in the catalogue: ``python docs/sizing.py``."""

from collections.abc import Iterator
from dataclasses import dataclass

from phi3_serve.catalogue import Variant, variant

TOKENS_OF_A_REQUEST = 2048  # prompt and answer
KEPT_FREE = 0.03  # of the memory, by the engine
STEPS_AND_GRAPHS = 2e9  # bytes; the largest step of 2,048 tokens, and CUDA graphs
MAX_ROWS = 256  # sequences that a replica on a GPU runs at once
MODELS = ("phi-3-mini-4k-instruct", "phi-3-medium-4k-instruct")  # the 128k variants have the same sizes


@dataclass(frozen=True, slots=True)
class Gpu:
    """What its maker states."""

    name: str
    memory: float  # bytes
    bandwidth: float  # bytes a second


GPUS = (
    Gpu("L4", 24e9, 300e9),
    Gpu("A10", 24e9, 600e9),
    Gpu("L40S", 48e9, 864e9),
    Gpu("A100 40 GB", 40e9, 1555e9),
    Gpu("A100 80 GB", 80e9, 2039e9),
    Gpu("H100", 80e9, 3350e9),
    Gpu("H200", 141e9, 4800e9),
)


def cache_tokens(gpu: Gpu, model: Variant) -> int:
    """Tokens that the key-value cache holds in bfloat16; negative if the weights do not fit."""
    left = gpu.memory * (1 - KEPT_FREE) - model.weight_bytes() - STEPS_AND_GRAPHS
    return int(left / model.kv_bytes_per_token())


def tokens_per_second(gpu: Gpu, model: Variant, rows: int) -> float:
    """The upper bound of decoding: each step reads the weights, and the cache of each row at half its length, once."""
    of_rows = rows * model.kv_bytes_per_token() * TOKENS_OF_A_REQUEST / 2
    return rows * gpu.bandwidth / (model.weight_bytes() + of_rows)


def rows_of(model: Variant) -> Iterator[str]:
    """The lines of the table of one model."""
    name = model.name.removesuffix("-4k-instruct")
    yield f"| {name} | tokens in the cache | requests at once | tokens/s, 1 request | tokens/s, all |"
    yield "|---|---|---|---|---|"
    for gpu in GPUS:
        tokens = cache_tokens(gpu, model)
        rows = min(MAX_ROWS, tokens // TOKENS_OF_A_REQUEST)
        if rows < 1:
            yield f"| {gpu.name} | does not fit | | | |"
        else:
            one, all_rows = (tokens_per_second(gpu, model, n) for n in (1, rows))
            yield f"| {gpu.name} | {tokens:,} | {rows} | {one:,.0f} | {all_rows:,.0f} |"


def tables() -> str:
    """Both tables in Markdown."""
    found = [variant(name) for name in MODELS]
    return "\n\n".join("\n".join(rows_of(model)) for model in found if model is not None)


if __name__ == "__main__":
    print(tables())
