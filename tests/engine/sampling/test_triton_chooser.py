"""Settings and noise of the device's chooser, with its kernel in Triton's interpreter."""

import gc
import weakref
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from phi3_serve.engine.kernels import triton_penalties, triton_sampling, triton_warpers
from phi3_serve.engine.loaded_model import LoadedModel
from phi3_serve.engine.sampling.device_sampler import ChoiceRow, DeviceSampler, TorchChooser
from phi3_serve.engine.sampling.processors import ScoreSettings
from phi3_serve.engine.sampling.score_edits import Phase
from phi3_serve.engine.sampling.triton_chooser import TritonChooser
from tests.engine.asking import request
from tests.engine.lacks_of_memory import LACKS_OF_MEMORY

CPU = torch.device("cpu")


def settings(loaded: LoadedModel, **given: Any) -> ScoreSettings:
    return ScoreSettings(request(loaded, **{"top_k": 0, **given}))


def chosen(chooser: TritonChooser, logits: Tensor, rows: list[ScoreSettings]) -> list[int]:
    tokens = torch.empty(len(rows), dtype=torch.int32)
    chooser.choose(logits, [ChoiceRow(of) for of in rows], torch.zeros(1, logits.shape[1], dtype=torch.int32), tokens)
    found: list[int] = tokens.tolist()
    return found


def test_each_row_has_its_own_settings(loaded: LoadedModel) -> None:
    logits = torch.tensor([0.02, 0.03, 0.05, 0.5, 0.2, 0.2]).log().expand(2, 6).contiguous()
    greedy, two = settings(loaded, do_sample=False), settings(loaded, do_sample=True, top_k=2)
    chooser = TritonChooser(CPU)
    draws = [chosen(chooser, logits, [greedy, two]) for _ in range(20)]
    assert {first for first, _ in draws} == {3}
    assert {second for _, second in draws} == {3, 4, 5}  # the fourth and fifth have equal scores


def test_settings_follow_the_rows(loaded: LoadedModel) -> None:
    logits = torch.tensor([0.0, 5.0, 4.9]).expand(1, 3).contiguous()
    chooser = TritonChooser(CPU)
    hot = settings(loaded, do_sample=True, temperature=100.0)
    assert len({chosen(chooser, logits, [hot])[0] for _ in range(30)}) == 3
    assert {chosen(chooser, logits, [settings(loaded, do_sample=False)])[0] for _ in range(5)} == {1}


def test_counts_follow_the_rows(loaded: LoadedModel) -> None:
    """Rows of one request have the same settings, and slots that change when one of them ends."""
    logits, counts = torch.tensor([[0.0, 5.0, 4.9]]), torch.tensor([[0, 0, 0], [0, 2, 0]], dtype=torch.int32)
    chooser, penalised = TritonChooser(CPU), settings(loaded, do_sample=False, presence_penalty=1.0)
    tokens = torch.empty(1, dtype=torch.int32)
    found = []
    for slot in (0, 1, 0):
        chooser.choose(logits, [ChoiceRow(penalised, slot)], counts, tokens)
        found += tokens.tolist()
    assert found == [1, 2, 2]
    assert counts.tolist() == [[0, 2, 2], [0, 2, 2]]


def test_what_is_ruled_out_follows_the_phase(loaded: LoadedModel) -> None:
    logits, counts = torch.tensor([[0.0, 5.0, 4.9, 4.8]]), torch.zeros(1, 4, dtype=torch.int32)
    given = {"begin_suppress_tokens": [1], "eos_token_id": 2, "min_new_tokens": 2}
    chooser, of = TritonChooser(CPU), settings(loaded, do_sample=False, **given)
    tokens = torch.empty(1, dtype=torch.int32)
    found = []
    for phase in (Phase(True, True), Phase(True, False), Phase(False, True), Phase(False, False)):
        chooser.choose(logits, [ChoiceRow(of, phase=phase)], counts, tokens)
        found += tokens.tolist()
    assert found == [3, 1, 2, 1]
    lengths = [of.num_prompt_tokens + count for count in range(3)]
    assert [Phase.of(of, length) for length in lengths] == [(True, True), (True, False), (False, False)]


def test_the_settings_of_a_request_that_has_ended_stay_alive(loaded: LoadedModel) -> None:
    """Settings are known by their address, so no new request may get the address of those that are known."""
    logits = torch.tensor([0.0, 5.0, 4.9]).expand(1, 3).contiguous()
    chooser = TritonChooser(CPU)
    rows = [settings(loaded, do_sample=True, temperature=100.0)]
    chosen(chooser, logits, rows)
    known = weakref.ref(rows.pop())
    gc.collect()
    assert known() is not None
    chosen(chooser, logits, [settings(loaded, do_sample=False)])
    gc.collect()
    assert known() is None


def test_preparing_launches_what_a_choice_launches(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dtypes, strides and alignments decide what is compiled."""
    launched: list[list[object]] = []

    def watched(*arguments: Tensor | tuple[Tensor, Tensor]) -> None:
        tensors = [t for of in arguments for t in (of if isinstance(of, tuple) else (of,))]
        launched.append([(t.dtype, t.shape[1:], t.stride()[1:], t.data_ptr() % 16) for t in tensors])

    monkeypatch.setattr(triton_sampling, "choose_tokens", watched)
    chooser, logits = TritonChooser(CPU), torch.zeros(3, 64, dtype=torch.bfloat16)
    chooser.prepare(logits)
    chosen(chooser, logits, [settings(loaded, do_sample=True)] * 3)
    assert launched[0] == launched[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_right_kernel_is_kept(dtype: torch.dtype, caplog: pytest.LogCaptureFixture) -> None:
    sampler = DeviceSampler(torch.zeros(4, dtype=torch.int32), TritonChooser(CPU), 700)
    sampler.prepare(torch.zeros(2, 700, dtype=dtype))
    assert isinstance(sampler._chooser, TritonChooser)
    assert not caplog.records


def always_the_first(
    logits: Tensor, floats: Tensor, ints: Tensor, edits: object, counts: Tensor, seed: Tensor, tokens: Tensor
) -> None:
    tokens.zero_()


def greedy_only(
    logits: Tensor, floats: Tensor, ints: Tensor, edits: object, counts: Tensor, seed: Tensor, tokens: Tensor
) -> None:
    tokens.copy_(torch.where(ints[:, 1] > 0, logits.argmin(-1), logits.argmax(-1)))


def does_not_compile(*_: object) -> None:
    raise RuntimeError("PassManager::run failed")


@pytest.mark.parametrize(
    ("kernel", "problem"),
    [
        (always_the_first, "it chose [0, 0, 0, 0"),
        (greedy_only, "it chose [18, 479, 479"),
        (does_not_compile, "PassManager::run failed"),
    ],
)
def test_a_wrong_kernel_is_replaced(
    kernel: object, problem: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(triton_sampling, "choose_tokens", kernel)
    sampler = DeviceSampler(torch.zeros(4, dtype=torch.int32), TritonChooser(CPU), 700)
    sampler.prepare(torch.zeros(2, 700))
    assert isinstance(sampler._chooser, TorchChooser)
    (record,) = caplog.records
    assert problem in record.getMessage()


@pytest.mark.parametrize("vocab", [64, 700])
@pytest.mark.parametrize(
    ("module", "name"),
    [
        *(
            (triton_warpers, f"_{name}")
            for name in ("top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
        ),
        (triton_penalties, "_repeated"),
        (triton_sampling, "penalised"),
    ],
)
def test_a_kernel_without_a_part_is_noticed(
    module: ModuleType, name: str, vocab: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, name, lambda scores, *_: scores)
    chooser = TritonChooser(CPU)
    chooser._seed = torch.tensor([vocab, 0])  # another may draw the right token
    assert "it chose" in str(chooser.prepare(torch.zeros(2, vocab, dtype=torch.bfloat16)))


@pytest.mark.parametrize(
    "error", [torch.AcceleratorError("an illegal memory access was encountered"), *LACKS_OF_MEMORY], ids=str
)
def test_a_broken_device_and_a_full_memory_are_no_wrong_kernel(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr(triton_sampling, "choose_tokens", broken)
    with pytest.raises(type(error)) as caught:
        TritonChooser(CPU).prepare(torch.zeros(2, 700))
    assert caught.value is error


def test_steps_and_choosers_draw_anew(loaded: LoadedModel) -> None:
    logits = torch.zeros(16, 300)
    rows = [settings(loaded, do_sample=True)] * 16
    chooser = TritonChooser(CPU)
    first, second = chosen(chooser, logits, rows), chosen(chooser, logits, rows)
    assert first != second
    assert chosen(TritonChooser(CPU), logits, rows) != first


@pytest.mark.parametrize(
    ("given", "is_supported"),
    [
        ({"do_sample": False, "typical_p": 0.5}, True),  # greedy rows are not warped
        ({"do_sample": True, "top_k": 5, "top_p": 0.5, "min_p": 0.1, "temperature": 2.0}, True),
        ({"do_sample": True, "typical_p": 0.5, "epsilon_cutoff": 0.01, "eta_cutoff": 0.01}, True),
        ({"do_sample": True, "top_h": 0.5}, False),
    ],
)
def test_warpers_that_the_kernel_has(loaded: LoadedModel, given: dict[str, Any], is_supported: bool) -> None:
    assert TritonChooser(CPU).supports(settings(loaded, **given)) is is_supported
