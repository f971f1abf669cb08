"""The catalogue: the variants, their sizes, and the accepted spellings of their names.

Figures are those of each variant's ``config.json`` at the pinned revision.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

RopeKind = Literal["default", "longrope"]

EMBEDDED_TINY = Path(__file__).parent / "models" / "phi-3-tiny"
# Of a repository. No pickles and no code are downloaded, so none can run.
DOWNLOADED = ["*.json", "*.safetensors", "*.jinja"]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Bytes of a weight in memory, scales and the embedding included; without quantization it is the dtype that counts.
FP8 = "fp8"
QUANTIZED_BYTES = {"int8": 1.01, "int4": 0.6, FP8: 1.01}
SCALE_BYTES = 4  # of a token and head in a key-value cache of 8 bits
STORED_AS = "safetensors: BF16"  # the weights of all variants
NO_QUANTIZATION = "none"
QUANTIZATIONS = (NO_QUANTIZATION, *QUANTIZED_BYTES)
# Those that ``auto`` chooses from, from the most exact one to the smallest. fp8 also rounds activations.
EXACT_QUANTIZATIONS = tuple(name for name in QUANTIZATIONS if name != FP8)


def memory_needed(weight_bytes: float, *, kv_bytes_per_token: int, context_length: int) -> int:
    """Bytes to serve one sequence: weights, 4,096 tokens of KV (or the context), a tenth for activations."""
    return int(1.1 * weight_bytes) + min(context_length, 4096) * kv_bytes_per_token


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One Phi-3 model: the source of its weights, and its memory."""

    name: str
    source: str  # Hub repository id, or a directory
    revision: str | None  # a commit, so that the weights cannot change
    context_length: int  # tokens, prompt and answer together
    num_parameters: int
    num_layers: int
    num_kv_heads: int
    head_dim: int
    sliding_window: int | None  # tokens before a query that it attends to; None: all
    rope: RopeKind
    needs_gpu: bool

    def kv_bytes_per_token(self, dtype: str = "bfloat16") -> int:
        """Bytes of keys and values of one token in all layers; ``dtype``: of the numbers, or ``int8`` with scales."""
        of_head = self.head_dim + SCALE_BYTES if dtype == "int8" else self.head_dim * DTYPE_BYTES[dtype]
        return 2 * self.num_layers * self.num_kv_heads * of_head

    def weight_bytes(self, dtype: str = "bfloat16") -> int:
        """Bytes of the weights in ``dtype``."""
        return self.num_parameters * DTYPE_BYTES[dtype]

    def memory_needed(
        self, dtype: str = "bfloat16", quantization: str = NO_QUANTIZATION, *, weights: str | None = None
    ) -> int:
        """See the function ``memory_needed``. ``weights``: their dtype, if it is not ``dtype``."""
        return memory_needed(
            self.num_parameters * QUANTIZED_BYTES.get(quantization, DTYPE_BYTES[weights or dtype]),
            kv_bytes_per_token=self.kv_bytes_per_token(dtype),
            context_length=self.context_length,
        )


MINI = {"num_parameters": 3_821_079_552, "num_layers": 32, "num_kv_heads": 32, "head_dim": 96}
MEDIUM = {"num_parameters": 13_960_238_080, "num_layers": 40, "num_kv_heads": 10, "head_dim": 128}

VARIANTS: tuple[Variant, ...] = (
    Variant(
        name="phi-3-tiny",
        source=str(EMBEDDED_TINY),
        revision=None,
        context_length=2048,
        num_parameters=5_737_728,
        num_layers=6,
        num_kv_heads=8,
        head_dim=32,
        sliding_window=None,
        rope="default",
        needs_gpu=False,
    ),
    Variant(
        name="phi-3-mini-4k-instruct",
        source="microsoft/Phi-3-mini-4k-instruct",
        revision="0a67737cc96d2554230f90338b163bc6380a2a85",
        context_length=4096,
        sliding_window=2047,
        rope="default",
        needs_gpu=True,
        **MINI,
    ),
    Variant(
        name="phi-3-mini-128k-instruct",
        source="microsoft/Phi-3-mini-128k-instruct",
        revision="072cb7562cb8c4adf682a8e186aaafa49469eb5d",
        context_length=131_072,
        sliding_window=None,  # 262,144 in its config.json: beyond the context
        rope="longrope",
        needs_gpu=True,
        **MINI,
    ),
    Variant(
        name="phi-3-medium-4k-instruct",
        source="microsoft/Phi-3-medium-4k-instruct",
        revision="b64223aaea6fbf273c0c8cd0801d5e732dce8897",
        context_length=4096,
        sliding_window=2047,
        rope="default",
        needs_gpu=True,
        **MEDIUM,
    ),
    Variant(
        name="phi-3-medium-128k-instruct",
        source="microsoft/Phi-3-medium-128k-instruct",
        revision="fa7d2aa4f5ea69b2e36b20d050cdae79c9bfbb3f",
        context_length=131_072,
        sliding_window=None,  # 131,072 in its config.json: the context
        rope="longrope",
        needs_gpu=True,
        **MEDIUM,
    ),
    Variant(
        name="phi-3.5-mini-instruct",
        source="microsoft/Phi-3.5-mini-instruct",
        revision="3145e03a9fd4cdd7cd953c34d9bbf7ad606122ca",
        context_length=131_072,
        sliding_window=None,  # 262,144 in its config.json: beyond the context
        rope="longrope",
        needs_gpu=True,
        **MINI,
    ),
)


def canonical(name: str) -> str:
    """The spelling that all accepted spellings of a name share.

    ``microsoft/Phi-3-mini-4k-instruct``, ``phi3-mini-4k`` and ``Phi_3_mini_4k_instruct`` are one name.
    """
    short = name.strip().lower().rsplit("/", 1)[-1].replace("_", "-").replace(" ", "-")
    if short.startswith("phi3"):
        short = "phi-3" + short.removeprefix("phi3")
    return short.removesuffix("-instruct")


def find(name: str, among: Iterable[str] | None = None) -> str | None:
    """The declared name for ``name``: the same name, or another spelling of the same catalogue entry."""
    names = [variant.name for variant in VARIANTS] if among is None else list(among)
    if name in names:
        return name
    catalogue_names = {variant.name for variant in VARIANTS}
    wanted = canonical(name)
    return next((n for n in names if n in catalogue_names and canonical(n) == wanted), None)


def variant(name: str) -> Variant | None:
    """The catalogue's entry under any accepted spelling of its name."""
    found = find(name)
    return next((v for v in VARIANTS if v.name == found), None)


def is_local(source: str) -> bool:
    """Whether ``source`` is a directory or a file and not a Hub repository id (``owner/name``)."""
    return Path(source).expanduser().exists() or not _HUB_ID.fullmatch(source)
