"""What the engine counts, against what its requests and answers really had."""

import pytest

from phi3_serve.core.engine_info import QueueLimits
from phi3_serve.engine.engine import Engine
from phi3_serve.engine.kvcache.block_manager import BLOCK_SIZE
from phi3_serve.engine.loaded_model import LoadedModel
from phi3_serve.engine.memory import EngineSizes
from phi3_serve.engine_statistics import EngineStatistics
from tests.engine.asking import Answer, request
from tests.support import ENDLESS

LONG = tuple(range(100, 100 + 4 * BLOCK_SIZE))


def counted(loaded: LoadedModel, *prompts: tuple[int, ...], num_blocks: int = 600, **given: object) -> EngineStatistics:
    """What an engine counts that answers ``prompts`` at the same time."""
    engine = Engine(loaded, queue=QueueLimits(16), sizes=EngineSizes(num_blocks, token_budget=64, max_rows=16))
    asked = [request(loaded, f"r{n}", prompt=prompt, **given) for n, prompt in enumerate(prompts)]  # type: ignore[arg-type]
    answers = [Answer(engine, one) for one in asked]
    for answer in answers:
        answer.last()
    statistics = engine.statistics
    engine.close()
    return statistics


def test_tokens_times_and_steps(loaded: LoadedModel) -> None:
    statistics = counted(loaded, (389, 512, 380), (619, 390), max_new_tokens=20, **ENDLESS)
    assert (statistics.prompt_tokens, statistics.generation_tokens) == (5, 40)
    for once in (statistics.queue_s, statistics.prefill_s, statistics.decode_s):
        assert sum(once.counts) == 2
    assert sum(statistics.inter_token_s.counts) == 38  # the first token of each request has none before it
    assert statistics.inter_token_s.sum == pytest.approx(statistics.decode_s.sum)
    assert statistics.step_tokens.sum == 5 + 38  # the last token of each answer is never run
    assert statistics.step_sequences.sum == 2 + 38
    assert (statistics.num_preemptions, statistics.num_drafts) == (0, 0)


def test_tokens_of_several_sequences_and_beams(loaded: LoadedModel) -> None:
    sampled = counted(loaded, LONG, max_new_tokens=8, do_sample=True, seed=3, num_return_sequences=3, **ENDLESS)
    assert sampled.generation_tokens == 3 * 8
    beams = counted(loaded, LONG, max_new_tokens=8, num_beams=4, **ENDLESS)
    assert beams.generation_tokens == 4 * 8
    for statistics in (sampled, beams):
        assert sum(statistics.inter_token_s.counts) == 7
        assert statistics.inter_token_s.sum == pytest.approx(statistics.decode_s.sum)


def test_a_prefix_is_looked_for_and_found(loaded: LoadedModel) -> None:
    engine = Engine(loaded, sizes=EngineSizes(600, token_budget=64, max_rows=16))
    for number in range(2):
        Answer(engine, request(loaded, f"r{number}", prompt=LONG, max_new_tokens=2, **ENDLESS)).last()
    assert engine.statistics.prefix_cache_queries == 2 * len(LONG)
    assert engine.statistics.prefix_cache_hits == 3 * BLOCK_SIZE  # the last token of a prompt is always run
    engine.close()


def test_drafts_and_their_accepted_tokens(loaded: LoadedModel) -> None:
    repeated = (500, 501, 502, 503) * 8
    statistics = counted(loaded, repeated, max_new_tokens=30, prompt_lookup_num_tokens=4, **ENDLESS)
    assert statistics.generation_tokens == 30
    assert 0 < statistics.num_drafts <= statistics.num_draft_tokens <= 4 * statistics.num_drafts
    # each step gives one token beside those of its draft
    assert statistics.num_accepted_tokens == 30 - sum(statistics.step_sequences.counts)
    assert sum(statistics.inter_token_s.counts) == 29


def test_a_preempted_request_waits_again_and_is_counted_once(loaded: LoadedModel) -> None:
    prompts = tuple(tuple(range(start, start + 20)) for start in (100, 200, 300))
    statistics = counted(loaded, *prompts, num_blocks=12, max_new_tokens=60, **ENDLESS)
    assert statistics.num_preemptions > 0
    assert statistics.generation_tokens == 3 * 60
    assert sum(statistics.queue_s.counts) == 3
