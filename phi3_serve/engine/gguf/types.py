"""The types of tensors in a GGUF file that are read. Plain Python."""

from collections.abc import Mapping
from typing import Literal

FLOATS: Mapping[str, str] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # as torch names them
BITS: Mapping[str, Literal[8, 4]] = {"Q8_0": 8, "Q4_0": 4, "Q4_K": 4, "Q5_K": 8, "Q6_K": 8}  # of a weight in memory
TYPES = (*FLOATS, *BITS)
