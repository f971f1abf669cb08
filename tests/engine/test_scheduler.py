"""What runs when: the scheduler without a model, its steps carried out on paper."""

from array import array
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies

from phi3_serve.core.engine_event import EngineEvent
from phi3_serve.core.engine_request import EngineRequest
from phi3_serve.engine.cache_capacity import CacheCapacity
from phi3_serve.engine.generation import Generation
from phi3_serve.engine.kvcache.block_manager import BLOCK_SIZE, BlockManager
from phi3_serve.engine.kvcache.chunk import Chunk
from phi3_serve.engine.loaded_model import LoadedModel
from phi3_serve.engine.sampling.stopping import StoppingCriteria
from phi3_serve.engine.sampling.strategies.base import LogitIndices, RoundScores
from phi3_serve.engine.sampling.strategies.select import strategy_for
from phi3_serve.engine.scheduler import Plan, Scheduler
from phi3_serve.errors import InvalidRequest
from tests.engine.asking import request

Make = Callable[..., Generation]


def ignore(event: EngineEvent) -> None:
    pass


@pytest.fixture
def make(loaded: LoadedModel) -> Make:
    def make(name: str, prompt_tokens: int, new_tokens: int = 4, first_token: int = 3, **given: Any) -> Generation:
        prompt = tuple(first_token + i % 500 for i in range(prompt_tokens))
        asked = request(
            loaded, name, prompt=prompt, max_new_tokens=new_tokens, **{"do_sample": False, "eos_token_id": 703, **given}
        )
        return Generation(asked, ignore, strategy_for(asked, StoppingCriteria(asked, {}), None))

    return make


class OnPaper:
    """Steps of a scheduler, every next token being 7, or with ``rows_differ`` another one in each row.

    The cache holds for each slot the tokens up to its own, so that each key that a query sees is checked.
    """

    def __init__(self, *, num_blocks: int = 64, token_budget: int = 32, max_rows: int = 8, **options: Any) -> None:
        prefix_cache = options.pop("prefix_cache", True)
        self.rows_differ = options.pop("rows_differ", False)
        self.window: int | None = options.get("window")
        self.cache: dict[int, tuple[int, ...]] = {}
        self.blocks = BlockManager(num_blocks, prefix_cache=prefix_cache)
        self.scheduler = Scheduler(self.blocks, token_budget=token_budget, max_rows=max_rows, **options)
        self.finished: list[str] = []
        self.started: list[str] = []

    def step(self) -> Plan:
        plan = self.scheduler.schedule()
        self.copy(plan)
        for chunk in plan.all_chunks:
            self.forward(chunk)
        self.scheduler.commit(plan)
        for generation in list(plan.ready):
            strategy = generation.strategy
            rows = strategy.score_rows(0, LogitIndices(strategy.begin(self.blocks), []))
            nothing = torch.empty(0)
            tokens = [7 + index * self.rows_differ for index in range(len(rows))]
            strategy.advance(RoundScores(0, rows, nothing, nothing, tokens=tokens), self.blocks)
            if strategy.is_done:
                self.finished.append(generation.request.request_id)
                self.scheduler.remove(generation)
        for generation in self.scheduler.running:
            if generation.request.request_id not in self.started:
                self.started.append(generation.request.request_id)
        self.check()
        return plan

    def check(self) -> None:
        everyone = [*self.scheduler.running, *self.scheduler.waiting]
        self.blocks.check_integrity([s.held_blocks for g in everyone for s in g.strategy.sequences])

    def copy(self, plan: Plan) -> None:
        before = dict(self.cache)
        for source, target in plan.all_copies:
            for offset in range(BLOCK_SIZE):
                if source * BLOCK_SIZE + offset in before:
                    self.cache[target * BLOCK_SIZE + offset] = before[source * BLOCK_SIZE + offset]

    def forward(self, chunk: Chunk) -> None:
        sequence, tokens = chunk.sequence, tuple(chunk.sequence.tokens)
        for position in range(chunk.start, chunk.end):
            self.cache[sequence.slot(position)] = tokens[: position + 1]
        first = 0 if self.window is None else max(0, chunk.start - self.window + 1)
        for position in range(first, chunk.end):
            assert position // BLOCK_SIZE >= sequence.num_freed
            assert self.cache[sequence.slot(position)] == tokens[: position + 1]

    def run(self, most_steps: int) -> int:
        for number in range(most_steps):
            if not self.scheduler.has_work:
                return number
            self.step()
        raise AssertionError(f"not done after {most_steps} steps")


def sizes(plan: Plan) -> dict[str, int]:
    return {g.request.request_id: sum(c.num_tokens for c in chunks) for g, chunks in plan.chunks.items()}


def test_a_long_prompt_is_read_in_chunks_beside_those_who_decode(make: Make) -> None:
    paper = OnPaper()
    paper.scheduler.add(make("short", 5, new_tokens=10))
    assert sizes(paper.step()) == {"short": 5}
    paper.scheduler.add(make("long", 100))
    seen = [sizes(paper.step()) for _ in range(5)]
    assert seen == [
        {"short": 1, "long": 31},
        {"short": 1, "long": 31},
        {"short": 1, "long": 31},
        {"short": 1, "long": 7},
        {"short": 1, "long": 1},
    ]


def test_a_step_is_never_larger_than_the_budget(make: Make) -> None:
    paper = OnPaper(num_blocks=400)
    for number in range(20):
        paper.scheduler.add(make(f"r{number}", 1 + 17 * number % 90, new_tokens=1 + number % 7))
    while paper.scheduler.has_work:
        assert sum(sizes(paper.step()).values()) <= 32
    assert len(paper.finished) == 20


def test_rows_are_limited(make: Make) -> None:
    paper = OnPaper(token_budget=512, max_rows=8, num_blocks=400)
    for number in range(4):
        paper.scheduler.add(make(f"r{number}", 4, do_sample=True, num_return_sequences=3))
    paper.step()
    assert paper.started == ["r0", "r1"]
    paper.run(100)
    assert len(paper.finished) == 4


def test_who_comes_first_is_served_first_and_none_starves(make: Make) -> None:
    """Memory for about two of forty requests, small and large ones in turns."""
    paper = OnPaper(num_blocks=14, prefix_cache=False)
    names = [f"r{number}" for number in range(40)]
    for number, name in enumerate(names):
        paper.scheduler.add(make(name, 120 if number % 2 else 5, new_tokens=40, first_token=3 + number))
    paper.run(5000)
    assert paper.started == names
    assert sorted(paper.finished) == sorted(names)
    assert paper.blocks.num_available == 14


def test_the_youngest_is_preempted_and_keeps_its_tokens(make: Make) -> None:
    paper = OnPaper(num_blocks=6, prefix_cache=False)
    old, young = make("old", 30, new_tokens=40), make("young", 14, new_tokens=60, first_token=100)
    paper.scheduler.add(old)
    paper.step()
    paper.scheduler.add(young)
    paper.step()
    while young not in paper.scheduler.waiting:
        paper.step()
        assert old in paper.scheduler.running
    kept = young.strategy.rows[0].new_token_ids
    assert len(kept) > 1
    assert young.strategy.rows[0].num_cached == 0
    paper.run(500)
    assert paper.finished == ["old", "young"]


def test_preempted_rows_share_their_prompt_again(make: Make) -> None:
    """Eight rows with a common prompt of 4 blocks and 2 of their own each fit into 24; 8 times 6 would not."""
    paper = OnPaper(num_blocks=24, token_budget=64, max_rows=16, prefix_cache=False)
    old = make("old", 60, new_tokens=60)
    forked = make("forked", 66, new_tokens=24, first_token=100, do_sample=True, num_return_sequences=8)
    paper.scheduler.add(old)
    paper.scheduler.add(forked)
    paper.step()
    paper.step()
    while forked not in paper.scheduler.waiting:
        assert forked in paper.scheduler.running
        paper.step()
    kept = [len(row.new_token_ids) for row in forked.strategy.rows]
    assert len(kept) == 8
    assert min(kept) > 2
    again = 0
    for _ in range(200):
        plan = paper.step()
        assert not plan.rejected
        again += sizes(plan).get("forked", 0)
    assert sorted(paper.finished) == ["forked", "old"]
    assert again < 66 + 8 * 40  # the prompt once


def test_what_memory_can_never_hold_is_rejected(make: Make) -> None:
    paper = OnPaper(num_blocks=3)
    large = make("large", 20, new_tokens=100)
    paper.scheduler.add(large)
    rejected: list[Generation] = []
    while paper.scheduler.has_work:
        rejected += paper.step().rejected
    assert rejected == [large]
    assert paper.blocks.num_available == 3


def test_a_cache_of_the_capacity_that_a_request_needs_is_large_enough(make: Make) -> None:
    """The least number of blocks that ``CacheCapacity`` accepts for it; one block less is refused."""
    kinds: list[dict[str, Any]] = [
        {"prompt_tokens": 5, "new_tokens": 1},
        {"prompt_tokens": 70, "new_tokens": 43},
        {"prompt_tokens": 33, "new_tokens": 40, "do_sample": True, "num_return_sequences": 5},
        {"prompt_tokens": 48, "new_tokens": 17, "guidance_scale": 1.5, "negative_prompt_ids": [9] * 40},
    ]
    for kind in kinds:
        for window in (None, 20):
            request = make("r", **kind).request
            least = next(n for n in range(1, 99) if fits(request, n, window))
            assert least == 1 or not fits(request, least - 1, window)
            paper = OnPaper(num_blocks=least, window=window, rows_differ=True)
            generation = make("r", **kind)
            paper.scheduler.add(generation)
            for _ in range(30):
                assert not paper.step().rejected
            if paper.scheduler.has_work:
                paper.scheduler.preempt_youngest(Plan())
            while paper.scheduler.has_work:
                assert not paper.step().rejected
            assert paper.finished == ["r"]


def fits(request: EngineRequest, num_blocks: int, window: int | None) -> bool:
    try:
        CacheCapacity(num_blocks, token_budget=32, window=window).fitted(request)
    except InvalidRequest:
        return False
    return True


def test_identical_prompts_are_computed_once(make: Make) -> None:
    paper = OnPaper(token_budget=256, num_blocks=200)
    for number in range(4):
        paper.scheduler.add(make(f"r{number}", 400))
    seen = [sizes(paper.step()) for _ in range(3)]
    assert seen == [
        {"r0": 256},
        {"r0": 144},
        {"r0": 1, "r1": 16, "r2": 16, "r3": 16},
    ]


def test_a_common_start_is_waited_for_and_not_more(make: Make) -> None:
    """Six blocks of 100 equal tokens, then each prompt goes on in its own way."""
    paper = OnPaper(token_budget=128, num_blocks=200)
    for number in range(2):
        generation = make(f"r{number}", 300)
        generation.strategy.rows[0].tokens[100 + number :] = array("q", [500 + number] * (200 - number))
        paper.scheduler.add(generation)
    seen = [sizes(paper.step()) for _ in range(4)]
    assert seen == [{"r0": 128}, {"r0": 128}, {"r0": 44, "r1": 84}, {"r0": 1, "r1": 120}]


def test_without_a_prefix_cache_nobody_waits_for_a_prefix(make: Make) -> None:
    paper = OnPaper(token_budget=256, prefix_cache=False)
    for name in ("first", "second"):
        paper.scheduler.add(make(name, 70))
    assert sizes(paper.step()) == {"first": 70, "second": 70}


def test_a_known_prefix_is_not_computed_again(make: Make) -> None:
    paper = OnPaper(token_budget=512)
    paper.scheduler.add(make("first", 70))
    paper.run(10)
    paper.scheduler.add(make("second", 70))
    assert sizes(paper.step()) == {"second": 70 - 4 * BLOCK_SIZE}


def test_a_prefix_is_known_before_its_request_has_a_token(make: Make) -> None:
    paper = OnPaper(token_budget=64)
    paper.scheduler.add(make("first", 200))
    paper.step()
    paper.scheduler.remove(paper.scheduler.running[0])
    paper.scheduler.add(make("second", 200))
    assert sizes(paper.step()) == {"second": 64}
    assert paper.scheduler.running[0].strategy.rows[0].num_cached == 128


def test_the_prefix_cache_can_be_switched_off(make: Make) -> None:
    paper = OnPaper(token_budget=512, prefix_cache=False)
    for name in ("first", "second"):
        paper.scheduler.add(make(name, 70))
        assert sizes(paper.step()) == {name: 70}
        paper.run(10)


def test_forks_share_the_prompt_and_copy_what_they_write_to(make: Make) -> None:
    paper = OnPaper(token_budget=512)
    generation = make("forked", 40, new_tokens=10, do_sample=True, num_return_sequences=3)
    paper.scheduler.add(generation)
    paper.step()
    tables = [list(row.block_table) for row in generation.strategy.rows]
    assert tables[0] == tables[1] == tables[2]
    plan = paper.step()
    assert [source for source, _ in plan.copies[generation]] == [tables[0][2]] * 2  # the last one to write may stay
    tables = [list(row.block_table) for row in generation.strategy.rows]
    assert len({table[2] for table in tables}) == 3
    assert len({tuple(table[:2]) for table in tables}) == 1


@pytest.mark.parametrize("steps", [0, 1, 2, 6])
def test_removal_in_any_phase_gives_everything_back(make: Make, steps: int) -> None:
    paper = OnPaper(prefix_cache=False)
    gone = make("gone", 80, new_tokens=20, do_sample=True, num_return_sequences=2)
    paper.scheduler.add(gone)
    for _ in range(steps):
        paper.step()
    paper.scheduler.remove(gone)
    paper.check()
    assert not paper.scheduler.has_work
    assert paper.blocks.num_available == 64


WINDOW = 40
MOST_HELD = 7  # blocks of a window of 40 and a chunk of 32 tokens


def test_a_long_answer_needs_only_the_blocks_of_its_window(make: Make) -> None:
    paper = OnPaper(num_blocks=MOST_HELD, window=WINDOW)
    long = make("long", 300, new_tokens=400)
    paper.scheduler.add(long)
    while paper.scheduler.has_work:
        assert not paper.step().rejected
        for row in long.strategy.rows:
            assert len(row.held_blocks) <= (MOST_HELD if row.num_pending > 1 else 4)
    assert paper.finished == ["long"]
    assert paper.blocks.num_available == MOST_HELD


def test_two_long_prompts_run_beside_each_other_where_their_windows_fit(make: Make) -> None:
    paper = OnPaper(num_blocks=2 * MOST_HELD, window=WINDOW, prefix_cache=False)
    for number in range(2):
        paper.scheduler.add(make(f"r{number}", 400, new_tokens=100, first_token=3 + number))
    while paper.scheduler.has_work:
        paper.step()
        assert not [g for g in paper.scheduler.waiting if g.has_started]
    assert len(paper.finished) == 2


def test_a_prefix_longer_than_the_window_is_known_again(make: Make) -> None:
    paper = OnPaper(num_blocks=40, token_budget=64, window=WINDOW)
    paper.scheduler.add(make("first", 320, new_tokens=2))
    paper.run(20)
    second = make("second", 320, new_tokens=40)
    paper.scheduler.add(second)
    assert sizes(paper.step()) == {"second": 320 - 19 * BLOCK_SIZE}
    assert len(second.strategy.rows[0].held_blocks) <= 4


def test_preempted_rows_share_the_prefix_that_their_windows_see(make: Make) -> None:
    """Six rows that diverged 12 tokens ago share two blocks, and need no more than before."""
    paper = OnPaper(num_blocks=34, token_budget=64, max_rows=16, prefix_cache=False, window=WINDOW, rows_differ=True)
    forked = make("forked", 200, new_tokens=24, do_sample=True, num_return_sequences=6)
    paper.scheduler.add(forked)
    while len(forked.strategy.rows[0].new_token_ids) < 12:
        paper.step()
    paper.scheduler.preempt_youngest(Plan())
    again = 0
    while paper.scheduler.has_work:
        plan = paper.step()
        assert not plan.rejected
        again += sizes(plan).get("forked", 0)
    assert paper.finished == ["forked"]
    assert again < 200 + 6 * (8 + 12 + 24)  # the prompt once


def test_preempted_rows_whose_windows_have_passed_the_prompt_need_not_share_it(make: Make) -> None:
    paper = OnPaper(num_blocks=16, token_budget=32, max_rows=16, prefix_cache=False, window=WINDOW, rows_differ=True)
    forked = make("forked", 70, new_tokens=200, do_sample=True, num_return_sequences=3)
    paper.scheduler.add(forked)
    while len(forked.strategy.rows[0].new_token_ids) < 150:
        paper.step()
    paper.scheduler.preempt_youngest(Plan())
    while paper.scheduler.has_work:
        assert not paper.step().rejected
    assert paper.finished == ["forked"]


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=strategies.data())
def test_every_key_that_a_query_sees_is_held(make: Make, data: strategies.DataObject) -> None:
    """Any window, budget and company, with preemptions at any time."""
    draw = data.draw
    paper = OnPaper(
        num_blocks=draw(strategies.integers(60, 90)),
        token_budget=draw(strategies.sampled_from([8, 33, 64])),
        max_rows=8,
        window=draw(strategies.sampled_from([None, 1, 2, 16, 17, 40, 100])),
        prefix_cache=draw(strategies.booleans()),
        rows_differ=True,
    )
    count = draw(strategies.integers(1, 6))
    for number in range(count):
        num_rows = draw(strategies.integers(1, 3))
        drawn = {"do_sample": True, "num_return_sequences": num_rows} if num_rows > 1 else {}
        prompt, new = draw(strategies.integers(1, 150)), draw(strategies.integers(1, 80))
        paper.scheduler.add(make(f"r{number}", prompt, new, first_token=3 + number % 2, **drawn))
    for step in range(3000):
        if not paper.scheduler.has_work:
            break
        assert not paper.step().rejected
        if paper.scheduler.running and step < 300 and draw(strategies.integers(0, 9)) == 0:
            paper.scheduler.preempt_youngest(Plan())
    assert len(paper.finished) == count
    assert paper.blocks.num_available == paper.blocks.num_blocks
