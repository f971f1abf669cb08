"""The runner of a GPU, on a CPU: its steps, its graphs and its unread tokens give the answers of transformers.

``make fuzz RUNNER=device`` compares more requests.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from phi3_serve.engine.model.device_runner import DeviceRunner
from phi3_serve.engine.scheduler import Plan
from tests.engine.asking import request
from tests.engine.model.replayer import runner_on_cpu
from tests.engine.parity import KINDS, Parity, cases, expect_equal


@pytest.fixture(scope="module")
def parity(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parity]:
    parity = Parity(tmp_path_factory.mktemp("parity"), KINDS["plain"].shape, make_runner=runner_on_cpu)
    yield parity
    parity.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # generate() warns of parameters that have no effect together
def test_random_requests_in_company(parity: Parity) -> None:
    expect_equal(parity, cases(parity.loaded, 11), num_companies=1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["window", "crossing"])
def test_tokens_are_unread_at_the_window_and_the_crossing(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    parity = Parity(tmp_path, kind.shape, make_runner=runner_on_cpu)
    expect_equal(parity, cases(parity.loaded, 13, guided=kind.guided), num_companies=1)
    parity.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_random_requests_with_adapters(tmp_path: Path) -> None:
    """The oracle is PEFT. ``make fuzz RUNNER=device ADAPTERS=1`` compares more."""
    parity = Parity(tmp_path, KINDS["plain"].shape, make_runner=runner_on_cpu, with_adapters=True)
    expect_equal(parity, parity.cases(11), num_companies=1)
    parity.close()


@pytest.mark.parametrize(
    ("given", "is_chosen_on_the_device"),
    [
        ({"do_sample": False}, True),
        ({"do_sample": True, "top_k": 5}, True),
        ({"do_sample": True, "seed": 5}, False),
        ({"do_sample": False, "repetition_penalty": 1.3, "frequency_penalty": 0.5}, True),
        ({"do_sample": False, "repetition_penalty": 1.3, "repeat_last_n": 2}, False),
        ({"do_sample": False, "no_repeat_ngram_size": 3}, False),
        ({"do_sample": False, "sequence_bias": [((5,), 2.0)], "bad_words_ids": [[6]], "min_new_tokens": 3}, True),
        ({"do_sample": True, "suppress_tokens": [7], "begin_suppress_tokens": [8], "presence_penalty": 1.0}, True),
        ({"do_sample": False, "sequence_bias": [((5, 9), 2.0)]}, False),
        ({"do_sample": False, "bad_words_ids": [[5, 9]]}, False),
        ({"do_sample": False, "suppress_tokens": list(range(65))}, False),
        (
            {
                "do_sample": False,
                "suppress_tokens": list(range(60)),
                "sequence_bias": [((n,), 1.0) for n in range(70, 75)],
            },
            False,
        ),
        ({"do_sample": False, "suppress_tokens": [5], "allowed_token_ids": [5, 6]}, False),
        ({"do_sample": False, "guidance_scale": 1.5, "negative_prompt_ids": (5, 9)}, False),
        ({"do_sample": False, "output_scores": True}, False),
        ({"do_sample": False, "prompt_lookup_num_tokens": 3}, False),
        ({"do_sample": False, "num_beams": 2}, False),
    ],
    ids=str,
)
def test_only_plain_rows_are_chosen_on_the_device(
    parity: Parity, given: dict[str, Any], is_chosen_on_the_device: bool
) -> None:
    core = parity.engine._core
    generation = core.generation(request(parity.loaded, **given), lambda event: None)
    assert isinstance(core.runner, DeviceRunner)
    assert core.runner.sampler.supports(generation.strategy) == is_chosen_on_the_device


def test_steps_are_launched_before_the_last_ones_tokens_are_read(
    parity: Parity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the comparison above proves nothing about unread tokens."""
    unread: list[int] = []
    launch = parity.engine._core._launch

    def watched(plan: Plan) -> object:
        unread.extend(chunk.token_ids[-1] for chunk in plan.all_chunks if chunk.token_ids[-1] < 0)
        return launch(plan)

    monkeypatch.setattr(parity.engine._core, "_launch", watched)
    made = [
        request(
            parity.loaded, f"greedy{number}", prompt=tuple(range(5, 9 + number)), do_sample=False, max_new_tokens=20
        )
        for number in range(8)
    ]
    parity.answers(made)
    assert len(unread) > 100
    assert min(unread) < -4
