"""The tables of sizing.md, from the sizes in the catalogue: ``python docs/sizing.py``."""

from collections.abc import Iterator

from phi3_serve.bench.gpus import GPUS, Gpu
from phi3_serve.catalogue import Variant, variant
from phi3_serve.core.engine_info import MAX_ROWS

TOKENS_OF_A_REQUEST = 2048  # prompt and answer
MODELS = ("phi-3-mini-4k-instruct", "phi-3-medium-4k-instruct")  # the 128k variants have the same sizes


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
        tokens = gpu.cache_tokens(model)
        rows = min(MAX_ROWS["cuda"], tokens // TOKENS_OF_A_REQUEST)
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
