"""The runner of a GPU, on a CPU: its steps, its graphs and its unread tokens give the answers of transformers."""

from collections import Counter
from collections.abc import Iterator
from itertools import islice

import pytest

from phi3_serve.engine.scheduler import Plan
from tests.engine.asking import request
from tests.engine.model.replayer import runner_on_cpu
from tests.engine.parity import COMPANY, Parity, cases
from tests.random_checkpoint import Shape

NUM_COMPANIES = 5


@pytest.fixture(scope="module")
def parity(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parity]:
    parity = Parity(tmp_path_factory.mktemp("parity"), Shape(num_layers=3), make_runner=runner_on_cpu)
    yield parity
    parity.close()


@pytest.mark.filterwarnings("ignore")  # generate() warns of parameters that have no effect together
@pytest.mark.parametrize("seed", [11, 12])
def test_random_requests_in_company(parity: Parity, seed: int) -> None:
    drawn = cases(parity.loaded, seed)
    counts: Counter[str] = Counter()
    for _ in range(NUM_COMPANIES):
        for result, case, ours, theirs in parity.run(list(islice(drawn, COMPANY))):
            assert result != "differs", f"{case.given}\n{case.prompt}\n{ours}\n{theirs}"
            counts[result] += 1
    assert counts["equal"] > 0.95 * counts.total()


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
