"""The memory that the largest steps of an engine take on a GPU, measured before the key-value cache is allocated."""

from collections.abc import Callable
from traceback import clear_frames

import torch

from phi3_serve.core.engine_info import MAX_ROWS
from phi3_serve.core.engine_request import EngineRequest
from phi3_serve.engine.device import CUDA_BYTES
from phi3_serve.engine.error_kind import kind_of
from phi3_serve.engine.kernels.contract import MAX_SHORT_QUERIES
from phi3_serve.engine.kernels.flash_attention import keys_at_once
from phi3_serve.engine.memory import EngineSizes, GpuMemory
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
def run_largest_step(runner: DeviceRunner, sizes: EngineSizes) -> None:
    """Run a chunk with all tokens of the budget, want the logits of each as drafts do, and draw all rows on the host.

    Every block of the chunk is block 0, so a cache of one block is enough. If the keys of any chunk are gathered, the
    step has one with which as many keys are gathered as ever at once, and the rest of the budget is short chunks.
    Else the memory of attention does not depend on how long the sequences are.
    """
    num_tokens, end = _gathered_chunk(runner, sizes.token_budget) or (sizes.token_budget, sizes.token_budget)
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


def _gathered_chunk(runner: DeviceRunner, token_budget: int) -> tuple[int, int] | None:
    """The tokens and the end of the chunk whose keys take the most memory when they are gathered; None: none are.

    A trial can find that a size is gathered and a larger one is not.
    """
    config = runner.decoder.config
    keys = keys_at_once(config.num_key_value_heads, head_dim(config), runner.decoder.dtype)
    most = min(int(config.max_position_embeddings), keys)
    sizes = (
        (count, end)
        for end in range(most, token_budget, -TRIED_KEYS)
        for count in range(token_budget, MAX_SHORT_QUERIES, -TRIED_QUERIES)
    )
    return next((size for size in sizes if runner.kernels.gathers(*size)), None)


def measure_largest_step(make_runner: Callable[[EngineSizes], DeviceRunner], token_budget: int) -> GpuMemory | None:
    """What graphs and the largest step take on the current GPU, on which the weights are loaded.

    ``make_runner`` makes a runner with the given sizes. None if the memory is not enough.
    """
    sizes = EngineSizes(num_blocks=1, token_budget=token_budget, max_rows=MAX_ROWS["cuda"])
    try:
        graphs, step = _measure(make_runner, sizes)
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


def _measure(make_runner: Callable[[EngineSizes], DeviceRunner], sizes: EngineSizes) -> tuple[int, int]:
    """Bytes of the graphs and of the largest step."""
    torch.cuda.empty_cache()  # what the load has left would be given back between the two readings
    free = torch.cuda.mem_get_info()[0]
    runner = make_runner(sizes)
    runner.capture_graphs()
    torch.cuda.empty_cache()
    graphs = free - torch.cuda.mem_get_info()[0]
    torch.cuda.reset_peak_memory_stats()
    reserved = torch.cuda.memory_reserved()
    run_largest_step(runner, sizes)
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
