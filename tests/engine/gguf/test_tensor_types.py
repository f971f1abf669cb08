"""What the blocks of each type mean, compared with the library ``gguf``."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type

from phi3_serve.engine.checkpoint import StoredTensor
from phi3_serve.engine.gguf.tensor_types import read
from phi3_serve.engine.gguf.types import BITS, FLOATS
from phi3_serve.engine.kernels.cpu import CpuKernels
from phi3_serve.engine.kernels.select import select_kernels
from tests.engine.gguf.files import blocks_of

OUTPUTS, INPUTS, BEFORE = 7, 768, 64


@pytest.mark.parametrize("name", BITS)
def test_a_quantised_tensor_is_what_the_library_makes_of_it(name: str, tmp_path: Path) -> None:
    """To the last bit, and so is what the kernels have packed."""
    kind = Type[name]
    stored = blocks_of(kind, OUTPUTS, INPUTS, seed=1)
    (tmp_path / "tensor").write_bytes(bytes(BEFORE) + stored.tobytes())
    weight = read(StoredTensor(tmp_path / "tensor", stored.nbytes, (OUTPUTS, INPUTS), name, BEFORE))
    assert not isinstance(weight, torch.Tensor)
    assert weight.bits == BITS[name]
    expected = torch.from_numpy(gguf.dequantize(stored, kind))
    assert 0.005 < float(expected.std()) < 0.1
    assert torch.equal(weight.dequantized(), expected)
    kernels = select_kernels(torch.device("cpu"), torch.float32, 64)
    assert isinstance(kernels, CpuKernels)
    packed = kernels.pack(weight)
    assert torch.equal(packed.unpacked().dequantized(), expected)
    x = torch.randn(3, INPUTS, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(packed.multiply(x), x @ expected.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FLOATS)
def test_floats_stay_as_they_are(name: str, tmp_path: Path) -> None:
    data = np.random.default_rng(0).normal(size=(OUTPUTS, 33)).astype(np.float32)
    stored = gguf.quantize(data, Type[name])
    stored.tofile(tmp_path / "tensor")
    found = read(StoredTensor(tmp_path / "tensor", stored.nbytes, (OUTPUTS, 33), name))
    assert isinstance(found, torch.Tensor)
    assert found.dtype == getattr(torch, FLOATS[name])
    assert torch.equal(found.float(), torch.from_numpy(gguf.dequantize(stored, Type[name]).astype(np.float32)))


def test_the_bytes_of_a_weight_in_memory(tmp_path: Path) -> None:
    """Bits for each weight, in the order of the file's own: 8.5, 4.5, 4.5, 5.5 and 6.5625."""
    bits = {"Q8_0": 8.75, "Q4_0": 4.5, "Q4_K": 4.625, "Q5_K": 8.625, "Q6_K": 8.5625}
    kernels = select_kernels(torch.device("cpu"), torch.float32, 64)
    for name, expected in bits.items():
        stored = blocks_of(Type[name], 64, 512, seed=0)
        path = tmp_path / name
        stored.tofile(path)
        weight = read(StoredTensor(path, stored.nbytes, (64, 512), name))
        assert not isinstance(weight, torch.Tensor)
        assert kernels.pack(weight).num_bytes * 8 / (64 * 512) == expected
