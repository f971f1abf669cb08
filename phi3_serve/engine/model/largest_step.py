"""The memory that the largest steps of an engine take on a GPU, measured before the key-value cache is allocated."""

import gc
from collections.abc import Callable
from traceback import clear_frames

import torch

from phi3_serve.core.engine_info import MAX_ROWS
from phi3_serve.core.engine_request import EngineRequest
from phi3_serve.engine.device import CUDA_BYTES
from phi3_serve.engine.error_kind import kind_of
from phi3_serve.engine.kernels.contract import MAX_SHORT_QUERIES
from phi3_serve.engine.kernels.flash_attention import keys_at_once
from phi3_serve.engine.kvcache.block_manager import BLOCK_SIZE
from phi3_serve.engine.memory import EngineSizes, FittingSizes, GpuMemory
from phi3_serve.engine.model.decoder import sliding_window
from phi3_serve.engine.model.device_runner import DeviceRunner, chunk_of_block_0
from phi3_serve.engine.sampling.drawing import draw
from phi3_serve.engine.sampling.processors import ScoreSettings
from phi3_serve.engine.weights import head_dim
from phi3_serve.parameters import GenerationParameters
from phi3_serve.resolved_parameters import resolve

# Warpers that look at the whole vocabulary take more memory than top_k and top_h.
WARPERS = GenerationParameters(
    do_sample=True, temperature=0.9, top_k=0, top_p=0.9, min_p=0.01, typical_p=0.9, epsilon_cutoff=1e-6, eta_cutoff=1e-6
)

TRIED_QUERIES, TRIED_KEYS = 16, 128  # steps between the sizes of chunks that are looked at


@torch.inference_mode()
def run_largest_step(runner: DeviceRunner, sizes: EngineSizes, max_cached: int) -> None:
    """Run a chunk with all tokens of the budget, want the logits of each as drafts do, and draw all rows on the host.

    The cache will hold at most ``max_cached`` tokens. That of ``runner`` may hold fewer.

    Every block of the chunk is block 0, so a cache of one block is enough. If the keys of any chunk are gathered, the
    step has one with which as many keys are gathered as ever at once, and the rest of the budget is short chunks.
    Else the memory of attention does not depend on how long the sequences are.
    """
    whole = (sizes.token_budget, sizes.token_budget)
    num_tokens, end = _gathered_chunk(runner, sizes.token_budget, max_cached) or whole
    chunks = [chunk_of_block_0(num_tokens, num_logits=num_tokens, start=end - num_tokens)]
    for first in range(num_tokens, sizes.token_budget, MAX_SHORT_QUERIES):  # beside another long chunk none is gathered
        rest = min(MAX_SHORT_QUERIES, sizes.token_budget - first)
        chunks.append(chunk_of_block_0(rest, num_logits=rest))
    logits = runner.run(chunks)
    scores = logits.float()
    rows = min(sizes.max_rows, len(scores))
    draw(scores[list(range(rows))], [_settings()] * rows)
    if runner.decoder.device.type == "cuda":
        torch.cuda.synchronize()


def _gathered_chunk(runner: DeviceRunner, token_budget: int, max_cached: int) -> tuple[int, int] | None:
    """The tokens and the end of the chunk whose keys take the most memory when they are gathered; None: none are.

    A trial can find that a size is gathered and a larger one is not. With a window, a sequence may be longer than what
    the cache holds of it.
    """
    config = runner.decoder.config
    keys = keys_at_once(config.num_key_value_heads, head_dim(config), runner.decoder.dtype)
    most = min(int(config.max_position_embeddings), keys)
    if sliding_window(config) is None:
        most = min(most, max_cached)
    sizes = (
        (count, end)
        for end in range(most, token_budget, -TRIED_KEYS)
        for count in range(token_budget, MAX_SHORT_QUERIES, -TRIED_QUERIES)
    )
    return next((size for size in sizes if runner.kernels.gathers(*size)), None)


def measure_largest_step(
    make_runner: Callable[[EngineSizes], DeviceRunner], bytes_per_block: int, wanted: FittingSizes, token_budget: int
) -> GpuMemory | None:
    """What graphs and the largest step take on the current GPU, on which the weights are loaded.

    Args:
        make_runner: makes a runner with the given sizes.
        bytes_per_block: of the cache that the engine will have.
        wanted: limits of the engine.
        token_budget: of the step.

    Returns:
        None if the memory is not enough.
    """
    sizes = EngineSizes(num_blocks=1, token_budget=token_budget, max_rows=MAX_ROWS["cuda"])
    try:
        graphs, step = _measure(make_runner, sizes, _max_cached(bytes_per_block, wanted))
    except Exception as error:
        if kind_of(error) != "memory":
            raise
        clear_frames(error.__traceback__)  # they hold tensors
        torch.cuda.empty_cache()
        return None
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    own = torch.cuda.memory_reserved() + CUDA_BYTES
    return GpuMemory(total=total, free=free, step=step, graphs=graphs, own=own)


def _max_cached(bytes_per_block: int, wanted: FittingSizes) -> int:
    """Tokens of a cache that has all of the GPU but the weights. The real one is smaller, as this step will show."""
    gc.collect()  # what is freed later could become part of the cache
    total = torch.cuda.mem_get_info()[1]
    left = int(total * min(1.0, wanted.gpu_share)) - torch.cuda.memory_allocated()
    return wanted.limited(max(0, left) // bytes_per_block) * BLOCK_SIZE


def _measure(
    make_runner: Callable[[EngineSizes], DeviceRunner], sizes: EngineSizes, max_cached: int
) -> tuple[int, int]:
    """Bytes of the graphs and of the largest step."""
    torch.cuda.empty_cache()  # what the load has left would be given back between the two readings
    free = torch.cuda.mem_get_info()[0]
    runner = make_runner(sizes)
    runner.capture_graphs()
    torch.cuda.empty_cache()
    graphs = free - torch.cuda.mem_get_info()[0]
    torch.cuda.reset_peak_memory_stats()
    reserved = torch.cuda.memory_reserved()
    run_largest_step(runner, sizes, max_cached)
    return graphs, torch.cuda.max_memory_reserved() - reserved


def _settings() -> ScoreSettings:
    return ScoreSettings(
        EngineRequest(
            request_id="",
            prompt_ids=(0,),
            parameters=resolve(WARPERS),
            min_length=0,
            max_length=2,
            stream=False,
            deadline=0,
        )
    )
