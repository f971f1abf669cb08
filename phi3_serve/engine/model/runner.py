"""Runs the steps of the engine on a device whose steps are planned on the host: a CPU, or a GPU without our kernels."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from phi3_serve.engine.adapters import places
from phi3_serve.engine.adapters.loaded_adapter import LoadedAdapter
from phi3_serve.engine.kernels.contract import AdaptedRows, AdapterPlan, Kernels
from phi3_serve.engine.kvcache.chunk import Chunk
from phi3_serve.engine.memory import EngineSizes
from phi3_serve.engine.model.decoder import Decoder, StepInputs, new_cache, sliding_window
from phi3_serve.engine.model.linear import padded_rows


class ModelRunner:
    """A model and its key-value cache."""

    sampler = None  # the host chooses all tokens
    cuda_graphs = False  # see ``EngineInfo``
    flash_attention = ""
    adapters = None  # they are read from the main memory

    def __init__(self, model: Any, kernels: Kernels, sizes: EngineSizes, *, releases_weights: bool = False) -> None:
        """Prepare to run ``model``; ``releases_weights``: see ``Decoder``."""
        self.sizes = sizes
        self.decoder = Decoder(model, kernels, releases_weights=releases_weights)
        self.kernels = kernels
        self._window = sliding_window(model.config)
        self._cache = new_cache(self.decoder, sizes.num_blocks, sizes.kv_cache_dtype)
        self._head = places.head(model.config)

    @property
    def replaced_kernels(self) -> dict[str, str]:
        """All kernels that slower ones replace, and the reasons."""
        return {**self.kernels.replaced, **self.decoder.replaced}

    def check_device(self) -> None:
        """A CPU has no errors that stay."""

    def free_memory(self) -> None:
        """A CPU keeps no memory that is not in use."""

    def prepare_adapter(self, loaded: LoadedAdapter) -> LoadedAdapter:
        """``loaded`` in the form that steps read, which is this one."""
        return loaded

    def copy_blocks(self, pairs: list[tuple[int, int]]) -> None:
        """Copy the keys and values of whole blocks, (from, to); see ``KvCache.copy_blocks``."""
        self._cache.copy_blocks(pairs)

    @torch.inference_mode()
    def run(self, chunks: Sequence[Chunk]) -> Tensor:
        """Run ``chunks`` and return their logits, float32 [sum of num_logits, vocabulary], in the same order."""
        num_logits = sum(chunk.num_logits for chunk in chunks)
        return self.decoder.run(self._inputs(chunks), self._cache)[:num_logits].float()

    def _inputs(self, chunks: Sequence[Chunk]) -> StepInputs:
        device = self.decoder.device
        return StepInputs(
            token_ids=self._padded([i for chunk in chunks for i in chunk.token_ids]),
            positions=self._padded([p for c in chunks for p in range(c.start, c.end)]),
            uses_long_factors=self._padded([int(is_long) for chunk in chunks for is_long in chunk.uses_long_factors]),
            slots=torch.tensor([c.sequence.slot(p) for c in chunks for p in range(c.start, c.end)], device=device),
            logit_rows=self._padded(logit_rows(chunks)),
            attention=self.kernels.plan_attention(chunks, window=self._window, cache=self._cache),
            adapters=self._plan_adapters(adapted_rows(chunks, lambda chunk: chunk.num_tokens)),
            adapters_of_logits=self._plan_adapters(
                [
                    rows
                    for rows in adapted_rows(chunks, lambda chunk: chunk.num_logits)
                    if any(adapter.changes[self._head] is not None for adapter, _ in rows.adapters)
                ]
            ),
        )

    def _plan_adapters(self, rows: Sequence[AdaptedRows]) -> AdapterPlan | None:
        return self.kernels.plan_adapters(rows) if rows else None

    def _padded(self, of_tokens: list[int]) -> Tensor:
        """One number for each token, then zeros up to a number of rows that the linear layers compute fast."""
        rows = padded_rows(len(of_tokens)) if self.decoder.pads_rows else len(of_tokens)
        padding = [0] * (rows - len(of_tokens))
        return torch.tensor(of_tokens + padding, dtype=torch.long, device=self.decoder.device)


def adapted_rows(chunks: Sequence[Chunk], num_rows: Callable[[Chunk], int]) -> list[AdaptedRows]:
    """The rows of a batch that have adapters; ``num_rows``: of each chunk."""
    rows: list[AdaptedRows] = []
    end = 0
    for chunk in chunks:
        first, end = end, end + num_rows(chunk)
        if chunk.sequence.adapters and end > first:
            adapters = [(applied.adapter, applied.strength) for applied in chunk.sequence.adapters]
            loaded = tuple((one, strength) for one, strength in adapters if isinstance(one, LoadedAdapter))
            rows.append(AdaptedRows(first, end, loaded))
    return rows


def logit_rows(chunks: Sequence[Chunk]) -> list[int]:
    """The rows of the batch whose logits are wanted."""
    rows: list[int] = []
    end = 0
    for chunk in chunks:
        end += chunk.num_tokens
        rows += range(end - chunk.num_logits, end)
    return rows
