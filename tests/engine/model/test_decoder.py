"""The memory of the key-value cache."""

import psutil
import torch

from phi3_serve.engine.kernels.reference import ReferenceKernels
from phi3_serve.engine.loaded_model import LoadedModel
from phi3_serve.engine.model.decoder import Decoder, new_cache


def test_a_cache_takes_memory_only_where_it_is_written(loaded: LoadedModel) -> None:
    process = psutil.Process()
    decoder = Decoder(loaded.model, ReferenceKernels())
    before = process.memory_info().rss
    cache = new_cache(decoder, num_blocks=200_000).values
    assert cache.nbytes > 500e6
    assert cache.shape[-2] == 16 * 200_000
    assert not cache[:, :, -100:].any()
    assert process.memory_info().rss - before < 0.02 * cache.nbytes
    cache[0, 0, :100_000] = 1.0
    assert float(cache[0, 0, :100_000].mean()) == 1.0
    assert torch.count_nonzero(cache[0, 0, 100_000:200_000]) == 0
    assert process.memory_info().rss - before < 0.1 * cache.nbytes
