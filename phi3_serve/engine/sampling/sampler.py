"""From the logits of a step to the next tokens of each request, for all rows of the batch together.

If that fails, it is repeated request by request, so that only the request at fault fails.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from phi3_serve import overload
from phi3_serve.engine.error_kind import kind_of
from phi3_serve.engine.kvcache.block_manager import BlockManager
from phi3_serve.engine.sampling.drawing import draw, scores_are_invalid
from phi3_serve.engine.sampling.processors import ScoreRow, process
from phi3_serve.engine.sampling.strategies.base import LogitIndices, RoundScores, Strategy
from phi3_serve.errors import EngineFailure, Phi3ServeError

logger = logging.getLogger("phi3_serve")

_NO_SCORES = torch.empty(0)  # one for all tasks: a tensor takes a microsecond


@dataclass(eq=False, slots=True)
class SamplingTask:
    """A request whose next tokens are to be chosen, and what has been chosen."""

    strategy: Strategy
    logits: LogitIndices
    new_tokens: Sequence[int] = ()  # as ``Strategy.advance`` returns them
    error: Phi3ServeError | None = None
    # of the current round
    rows: list[ScoreRow] = field(default_factory=list)
    scores: Tensor = _NO_SCORES  # [rows, vocabulary]
    tokens: Sequence[int] | None = None

    def begin_round(self, round_number: int) -> None:
        """Take the rows of the next round from the strategy."""
        self.rows = self.strategy.score_rows(round_number, self.logits)
        self.scores, self.tokens = _NO_SCORES, None


def choose_tokens(tasks: Sequence[SamplingTask], logits: Tensor, blocks: BlockManager) -> None:
    """Advance every request by its next tokens.

    Args:
        tasks: the requests. A request that fails gets an ``error``.
        logits: [logits of the step, vocabulary], of any float type. Scores are float32.
        blocks: for strategies that fork or release sequences.
    """
    for round_number in range(max((task.strategy.num_rounds for task in tasks), default=0)):
        due = [task for task in tasks if task.error is None and round_number < task.strategy.num_rounds]
        for task in due:
            task.begin_round(round_number)
        _together_or_one_by_one(due, lambda some: _score(some, logits))
        _together_or_one_by_one([task for task in due if _is_drawn_in_batch(task)], _draw)
        for task in due:
            if task.error is None:
                advance(task, round_number, logits, blocks)


def _together_or_one_by_one(tasks: Sequence[SamplingTask], act: Callable[[Sequence[SamplingTask]], None]) -> None:
    """Call ``act`` for all tasks at once or, if that fails, for one after another."""
    if not tasks:
        return
    try:
        act(tasks)
    except Exception as error:
        if kind_of(error) == "device":
            raise
        if len(tasks) == 1:
            tasks[0].error = _translated(error, tasks[0])
            return
    else:
        return
    # Not where the error is handled: its traceback holds tensors that the device may have no memory beside.
    for task in tasks:
        _together_or_one_by_one([task], act)


def _translated(error: Exception, task: SamplingTask) -> Phi3ServeError:
    if isinstance(error, Phi3ServeError):
        return error
    if isinstance(error, OverflowError) or "probability tensor contains" in str(error):
        return scores_are_invalid()
    if kind_of(error) == "memory":
        return overload.memory_is_full()
    logger.error("request %s failed", task.strategy.request.request_id, exc_info=error)
    return EngineFailure(f"Generation failed: {type(error).__name__}.")


def _score(tasks: Sequence[SamplingTask], logits: Tensor) -> None:
    """Give each task its processed scores, and the most likely tokens if it takes them."""
    rows = [row for task in tasks for row in task.rows]
    if not rows:
        return
    scores = _processed(rows, logits)
    most_likely = _argmax(scores)
    start = 0
    for task in tasks:
        mine = slice(start, start + len(task.rows))
        start = mine.stop
        task.scores = scores[mine]
        if task.strategy.choice == "most_likely":
            task.tokens = most_likely[mine]
        if task.strategy.constrained is not None:
            chosen = torch.tensor(most_likely[mine], device=scores.device)
            task.strategy.check_scores(task.scores.gather(1, chosen[:, None]).flatten().tolist())


def _processed(rows: Sequence[ScoreRow], logits: Tensor) -> Tensor:
    indices = [row.logit_index for row in rows]
    of_beams = [index for index, row in enumerate(rows) if row.settings.parameters.is_beam_search]
    if not of_beams and not any(row.settings.processors for row in rows) and indices == list(range(len(logits))):
        return logits.float()  # nothing changes them, so megabytes of float32 need not be copied
    scores = logits[indices].float()
    if of_beams:
        scores[of_beams] = scores[of_beams].log_softmax(-1)
    process(scores, rows, logits)
    return scores


def _argmax(scores: Tensor) -> list[int]:
    """The first of the largest scores of each row."""
    on_cpu = scores.device.type == "cpu"  # numpy takes a sixth of torch's time
    found: list[int] = (scores.numpy().argmax(-1) if on_cpu else scores.argmax(-1)).tolist()
    return found


def _is_drawn_in_batch(task: SamplingTask) -> bool:
    return task.error is None and task.strategy.choice == "drawn_in_batch"


def _draw(tasks: Sequence[SamplingTask]) -> None:
    scores = torch.cat([task.scores for task in tasks])
    tokens = draw(scores, [row.settings for task in tasks for row in task.rows])
    start = 0
    for task in tasks:
        task.tokens = tokens[start : start + len(task.rows)]
        start += len(task.rows)


def advance(task: SamplingTask, round_number: int, logits: Tensor, blocks: BlockManager) -> None:
    """Let the strategy of ``task`` append the tokens of a round. A failure becomes the task's ``error``."""
    scores = RoundScores(round_number, task.rows, task.scores, logits, task.tokens)
    try:
        task.new_tokens = task.strategy.advance(scores, blocks)
    except Exception as error:
        if kind_of(error) == "device":
            raise
        task.error = _translated(error, task)
