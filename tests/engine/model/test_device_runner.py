"""The runner of a GPU, on a CPU: its steps, its graphs and its unread tokens give the answers of transformers."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from phi3_serve.engine.scheduler import Plan
from tests.engine.asking import request
from tests.engine.model.replayer import runner_on_cpu
from tests.engine.parity import KINDS, Parity, cases, expect_equal

NUM_COMPANIES = 5


@pytest.fixture(scope="module")
def parity(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parity]:
    parity = Parity(tmp_path_factory.mktemp("parity"), KINDS["plain"].shape, make_runner=runner_on_cpu)
    yield parity
    parity.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # generate() warns of parameters that have no effect together
@pytest.mark.parametrize("seed", [11, 12])
def test_random_requests_in_company(parity: Parity, seed: int) -> None:
    expect_equal(parity, cases(parity.loaded, seed), NUM_COMPANIES)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["window", "crossing"])
def test_tokens_are_unread_at_the_window_and_the_crossing(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    parity = Parity(tmp_path, kind.shape, make_runner=runner_on_cpu)
    expect_equal(parity, cases(parity.loaded, 13, guided=kind.guided), NUM_COMPANIES)
    parity.close()


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
