"""The steps of a GPU's runner against those of the runner of a CPU, which plans a step in another way.

With the Triton kernels, in the interpreter, the two have no kernel in common. With the reference kernels, the tests take
a second.
"""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from random import Random
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from phi3_serve.engine import quantization
from phi3_serve.engine.kernels import flash_attention
from phi3_serve.engine.kernels.contract import DeviceKernels, GatheredQueries, PagedQueries
from phi3_serve.engine.kernels.cuda import CudaKernels
from phi3_serve.engine.kernels.kv_cache import KvCache
from phi3_serve.engine.kernels.reference import ReferenceKernels
from phi3_serve.engine.kernels.select import select_weight_kernels
from phi3_serve.engine.kernels.triton_fp8 import ScaledWeight
from phi3_serve.engine.kernels.triton_quantized import TritonWeight, TritonWeights
from phi3_serve.engine.kvcache.block_manager import BLOCK_SIZE
from phi3_serve.engine.kvcache.cached_sequence import CachedSequence
from phi3_serve.engine.kvcache.chunk import Chunk
from phi3_serve.engine.loaded_model import LoadedModel
from phi3_serve.engine.loader import load
from phi3_serve.engine.memory import EngineSizes
from phi3_serve.engine.model.decoder import Decoder
from phi3_serve.engine.model.device_runner import DeviceRunner, chunk_of_block_0
from phi3_serve.engine.model.runner import ModelRunner
from phi3_serve.engine.model.step_buffer import pack
from phi3_serve.engine.quantization import quantize_model
from phi3_serve.engine.sampling.device_sampler import TorchChooser
from phi3_serve.engine.sampling.processors import ScoreSettings
from tests.engine import asking
from tests.engine.kernels.emulated_flash import emulated_flash_attention
from tests.engine.kernels.interpreter import mended_interpreter
from tests.engine.model.replayer import Replayer
from tests.random_checkpoint import Shape, make

SIZES = EngineSizes(num_blocks=24, token_budget=64, max_rows=8)
CROSSING = 64  # tokens; from the next one on RoPE takes its long factors
SHAPE = Shape(
    num_layers=2,
    hidden_size=64,
    num_heads=4,
    num_kv_heads=2,
    sliding_window=21,
    context_length=CROSSING,
    long_context_length=256,
)
LENGTHS = (
    40,
    70,
    11,
)  # tokens of the prompts; the first is not cached from its window on, the second is beyond the crossing


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    directory = tmp_path_factory.mktemp("steps")
    make(directory, SHAPE, seed=3)
    return load("steps", str(directory), None, device="cpu", dtype="float32")


@dataclass
class Both:
    """The same sequences on the host and on the device, with one block table each."""

    on_host: ModelRunner
    on_device: DeviceRunner
    graphs: Replayer
    free: list[int]
    tolerance: float = 1e-4
    sequences: list[tuple[CachedSequence, CachedSequence]] = field(default_factory=list)

    def add(self, tokens: Sequence[int], *, first_blocks: Sequence[int] = ()) -> None:
        """Start a sequence, some of whose blocks are given."""
        one, other = (CachedSequence(tokens, long_factors_from=CROSSING + 1) for _ in range(2))
        blocks = [*first_blocks, *(self.free.pop() for _ in range(6 - len(first_blocks)))]
        for sequence in (one, other):
            sequence.block_table.extend(blocks)
        self.sequences.append((one, other))

    def run(self, counts: Sequence[tuple[int, int, int]]) -> Tensor:
        """Run (sequence, tokens, logits) in one step, and compare; the logits of the device."""
        of_host, of_device = (
            [Chunk(self.sequences[index][side], tokens, logits) for index, tokens, logits in counts] for side in (0, 1)
        )
        expected, found = self.on_host.run(of_host), self.on_device.run(of_device)
        torch.testing.assert_close(found, expected, rtol=self.tolerance, atol=self.tolerance)
        for index, tokens, _ in counts:
            for sequence in self.sequences[index]:
                sequence.num_cached += tokens
        return found.clone()

    def choose(self, logits: Tensor, settings: ScoreSettings) -> None:
        """Let the device choose greedily; the host reads the tokens, the device does not."""
        sequences = [device for _, device in self.sequences]
        tokens = self.on_device.sampler.launch(logits, [settings] * len(logits), sequences).read()
        assert tokens == logits.argmax(-1).tolist()
        for index, ((host, device), token) in enumerate(zip(self.sequences, tokens, strict=True)):
            host.append(token)
            device.expect_token(index)


class GatheringKernels(ReferenceKernels):
    """With torch's FlashAttention-2 for all but short chunks."""

    def gathers(self, num_queries: int, num_keys: int) -> bool:
        return True

    def attend(self, qkv: Tensor, cache: KvCache, queries: PagedQueries, scale: float, window: int | None) -> Tensor:
        attended = super().attend(qkv, cache, queries, scale, window)
        output = attended.view(len(qkv), -1, qkv.shape[2])
        query = qkv[:, : output.shape[1]]
        for chunk in queries.gathered:
            output[chunk.row : chunk.row + chunk.num_queries] = torch.nan
            flash_attention.attend(query, cache, output, queries.block_tables, chunk, scale=scale, window=window)
        return attended


def test_a_long_chunk_beside_another_is_not_gathered() -> None:
    long, short, other = (chunk_of_block_0(count, num_logits=0) for count in (20, 8, 9))
    alone, beside = (pack(chunks, [], GatheringKernels())[0] for chunks in ([long, short], [long, short, other]))
    assert (alone.gathered, alone.long_tiles) == ((GatheredQueries(0, 20, 20, 0),), 0)
    assert (beside.gathered, beside.long_tiles > 0) == ((), True)


@pytest.fixture(params=["reference", "gathering", pytest.param("triton", marks=pytest.mark.slow)])
def both(request: pytest.FixtureRequest, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[Both]:
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: SimpleNamespace(multi_processor_count=1, major=9)
    )
    kernels: DeviceKernels = GatheringKernels() if request.param == "gathering" else ReferenceKernels()
    if request.param == "triton":
        kernels = CudaKernels(num_heads=4, num_kv_heads=2, dtype=torch.float32, device=torch.device("cpu"))
    graphs = Replayer()
    both = Both(
        ModelRunner(loaded.model, ReferenceKernels(), SIZES),
        DeviceRunner(Decoder(loaded.model, kernels), kernels, TorchChooser(), graphs, SIZES),
        graphs,
        Random(2).sample(range(1, SIZES.num_blocks), SIZES.num_blocks - 1),
    )
    draw = Random(1)
    for length in LENGTHS:
        # Block 0, in which misplaced keys of padding would lie, has keys that the first sequence sees.
        blocks = [both.free.pop(), both.free.pop(), 0] if not both.sequences else []
        both.add([0, *(draw.randrange(704) for _ in range(length - 1))], first_blocks=blocks)
    with emulated_flash_attention() as calls:
        yield both
    assert bool(calls) == (request.param == "gathering")


@pytest.mark.filterwarnings(
    "ignore:overflow encountered", "ignore:invalid value encountered"
)  # padding rows hold what was in the memory
def test_prompts_drafts_and_decoded_tokens(both: Both, loaded: LoadedModel) -> None:
    settings = ScoreSettings(asking.request(loaded, do_sample=False))
    both.run([(0, 33, 1), (2, 9, 0)])  # a long tile and, after a border of 8 tokens, another long chunk
    both.run([(0, 6, 0), (1, 50, 1), (2, 1, 0)])  # a chunk behind a prefix, a first chunk, the rest of a prompt
    both.run([(1, 19, 0)])  # may be a graph
    num_captures = both.graphs.num_captures
    assert {sequence.num_pending for pair in both.sequences for sequence in pair} == {1}
    logits = both.run([(index, 1, 1) for index in range(3)])  # a graph of four rows
    assert both.graphs.num_captures == num_captures + 1
    num_replays = both.graphs.num_replays
    for _ in range(3):
        both.choose(logits, settings)
        logits = both.run([(index, 1, 1) for index in range(3)])
        for (host, device), token in zip(both.sequences, [h.tokens[-1] for h, _ in both.sequences], strict=True):
            device.append(token)
            device.num_cached = host.num_cached
    assert (both.graphs.num_captures, both.graphs.num_replays) == (num_captures + 1, num_replays + 3)
    for host, device in both.sequences[:1]:
        for sequence in (host, device):
            sequence.append(5)
            sequence.draft = (7, 0, 9)
    both.run([(0, 4, 4)])  # a draft, alone
    both.add(range(5, 17), first_blocks=[both.free.pop()] * 6)
    both.run([(3, 12, 1)])  # a whole prompt, alone
    assert all(len(sequence.block_table) * BLOCK_SIZE >= len(sequence) for pair in both.sequences for sequence in pair)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "tolerance"), [("int4", 1e-4), ("fp8", 1e-2)])
def test_weights_of_fewer_bits(
    name: str, tolerance: float, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linear layers of a GPU, the head in int8.

    With fp8, an activation on the edge between two values falls to either side when sums are ordered otherwise.
    """
    monkeypatch.setattr(quantization, "problem_of_pack", lambda *_: None)  # seconds in the interpreter
    models = [deepcopy(loaded.model) for _ in range(2)]
    quantize_model(models[0], name, select_weight_kernels(torch.device("cpu")))
    with mended_interpreter():
        quantize_model(models[1], name, TritonWeights())
    packed = models[1].model.layers[0].mlp.down_proj.packed
    assert isinstance(packed, ScaledWeight if name == "fp8" else TritonWeight)
    assert isinstance(models[1].lm_head.packed, TritonWeight)
    graphs, kernels = Replayer(), ReferenceKernels()
    device = DeviceRunner(Decoder(models[1], kernels), kernels, TorchChooser(), graphs, SIZES)
    host = ModelRunner(models[0], ReferenceKernels(), SIZES)
    both = Both(host, device, graphs, list(range(SIZES.num_blocks)), tolerance)
    both.add(range(5, 25))
    both.add(range(90, 100))
    with mended_interpreter():
        both.run([(0, 19, 0), (1, 9, 1)])
        both.run([(0, 1, 1), (1, 1, 1)])
    assert graphs.num_captures == 1


@pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")
def test_one_decoded_token_beside_a_prompt(both: Both) -> None:
    both.run([(2, 10, 0)])
    num_captures = both.graphs.num_captures
    both.run([(2, 1, 1), (0, 40, 1)])
    assert (both.graphs.num_captures, both.graphs.num_replays) == (num_captures, num_captures)
