"""From the logits of a step to the next tokens of each request, all rows of the batch together.

What fails is tried again request by request, so that only the one at fault fails.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from phi3_serve.core import TokenLogprobs
from phi3_serve.engine.kvcache.block_manager import BlockManager
from phi3_serve.engine.sampling.processors import Row, process
from phi3_serve.engine.sampling.strategies import Beams, Decoding, GroupBeams, Sampling
from phi3_serve.engine.sampling.warpers import draw, probabilities, warp
from phi3_serve.errors import EngineFailure, InvalidRequest, Phi3ServeError

logger = logging.getLogger("phi3_serve")


@dataclass(eq=False, slots=True)
class Choice:
    """A request whose next tokens are due: its rows of the logits, then its tokens or what went wrong."""

    strategy: Decoding
    logits: list[int]
    shadow_logits: list[int]
    new_tokens: list[int] = field(default_factory=list)  # of the first sequence
    error: Phi3ServeError | None = None
    rows: list[Row] = field(default_factory=list)  # of the present round
    scores: Tensor = field(default_factory=lambda: torch.empty(0))  # [rows, vocabulary]
    tokens: list[int] | None = None


def choose(choices: Sequence[Choice], logits: Tensor, blocks: BlockManager) -> None:
    """Let every request go on from its rows of ``logits`` [rows, vocabulary], float32."""
    number = 0
    while due := [c for c in choices if c.error is None and number < c.strategy.num_rounds]:
        for choice in due:
            choice.rows = choice.strategy.score_rows(number, choice.logits, choice.shadow_logits)
        _together(due, lambda some: _score(some, logits))
        _together([c for c in due if c.error is None and _is_drawn_together(c)], _draw)
        for choice in due:
            if choice.error is None:
                _together([choice], lambda one, number=number: _accept(one[0], number, logits, blocks))  # type: ignore[misc]
        number += 1


def _together(choices: Sequence[Choice], act: Callable[[Sequence[Choice]], None]) -> None:
    """Do ``act`` for all at once, or, if that fails, for one after another."""
    if not choices:
        return
    try:
        act(choices)
    except Exception as error:
        if len(choices) == 1:
            choices[0].error = _translated(error, choices[0])
            return
        for choice in choices:
            _together([choice], act)


def _translated(error: Exception, choice: Choice) -> Phi3ServeError:
    if isinstance(error, Phi3ServeError):
        return error
    if isinstance(error, OverflowError) or "probability tensor contains" in str(error):
        return InvalidRequest("These parameters drive the scores beyond all numbers, to inf or nan.")
    logger.error("request %s failed", choice.strategy.request.request_id, exc_info=error)
    return EngineFailure(f"Generation failed: {type(error).__name__}.")


def _score(choices: Sequence[Choice], logits: Tensor) -> None:
    """Processed scores of all rows, log-probabilities where beams are searched; the likeliest token where greedy."""
    rows = [row for choice in choices for row in choice.rows]
    if not rows:
        return
    scores = _processed(rows, logits)
    likeliest = _argmax(scores)
    first = 0
    for choice in choices:
        mine = slice(first, first + len(choice.rows))
        first = mine.stop
        choice.scores = scores[mine]
        if choice.strategy.settings.is_greedy:
            choice.tokens = likeliest[mine]


def _processed(rows: Sequence[Row], logits: Tensor) -> Tensor:
    at = [row.logit for row in rows]
    of_beams = [number for number, row in enumerate(rows) if (row.settings.parameters.num_beams or 1) > 1]
    if not of_beams and not any(row.settings.processors for row in rows) and at == list(range(len(logits))):
        return logits  # nobody changes them, and two megabytes need not be copied
    scores = logits[at]
    if of_beams:
        scores[of_beams] = scores[of_beams].log_softmax(-1)
    process(scores, rows, logits)
    return scores


def _argmax(scores: Tensor) -> list[int]:
    """The first of the largest, of each row."""
    on_cpu = scores.device.type == "cpu"  # where numpy takes a sixth of the time
    found: list[int] = (scores.numpy().argmax(-1) if on_cpu else scores.argmax(-1)).tolist()
    return found


def _is_sampling(choice: Choice) -> bool:
    return isinstance(choice.strategy, Sampling)


def _is_drawn_together(choice: Choice) -> bool:
    """Whether its tokens are drawn together with others', with nobody's seed."""
    return _is_sampling(choice) and choice.tokens is None and choice.strategy.generator is None


def _draw(choices: Sequence[Choice]) -> None:
    scores = torch.cat([choice.scores for choice in choices])
    tokens = draw(scores, [row.settings for choice in choices for row in choice.rows])
    first = 0
    for choice in choices:
        choice.tokens = tokens[first : first + len(choice.rows)]
        first += len(choice.rows)


def _accept(choice: Choice, number: int, logits: Tensor, blocks: BlockManager) -> None:
    decoding = choice.strategy
    if isinstance(decoding, Beams | GroupBeams):
        decoding.choose(number, choice.scores[: len(choice.rows)], blocks)
    elif isinstance(decoding, Sampling):
        tokens = choice.tokens if choice.tokens is not None else _draw_seeded(choice, decoding)
        scores = _token_scores(choice, tokens) if decoding.request.parameters.output_scores else []
        most = decoding.request.parameters.top_logprobs
        logprobs = [] if most is None else _logprobs(choice, tokens, logits, most)
        choice.new_tokens = decoding.accept(tokens, scores, logprobs, blocks)


def _draw_seeded(choice: Choice, decoding: Sampling) -> list[int]:
    """Draw as ``torch.multinomial`` does within ``transformers.generate`` after ``torch.manual_seed``.

    It divides the probabilities of all sequences by exponential noise and takes the largest; the noise is drawn for
    finished sequences, too.
    """
    probs = probabilities(choice.scores.clone(), [row.settings for row in choice.rows]).cpu()
    tokens: list[int] = []
    draft = decoding.rows[0].draft
    for at in range(len(draft) + 1):
        noise = torch.empty(decoding.num_rows, probs.shape[1]).exponential_(1, generator=decoding.generator)
        if not draft:
            return (probs / noise[decoding.numbers]).argmax(-1).tolist()
        tokens.append(int((probs[at] / noise[0]).argmax()))
        if at < len(draft) and tokens[-1] != draft[at]:
            break
    return tokens


def _token_scores(choice: Choice, tokens: list[int]) -> list[float]:
    scores = choice.scores[: len(tokens)]
    if choice.strategy.request.parameters.do_sample:
        scores = warp(scores.clone(), [row.settings for row in choice.rows[: len(tokens)]])
    picked = scores.log_softmax(-1).gather(1, torch.tensor(tokens, device=scores.device)[:, None])
    return picked.flatten().tolist()


def _logprobs(choice: Choice, tokens: list[int], logits: Tensor, most: int) -> list[TokenLogprobs]:
    """Of ``tokens`` and of the ``most`` likeliest beside each, under the logits as the model gave them."""
    of_rows = logits[[row.logit for row in choice.rows[: len(tokens)]]].float().log_softmax(-1)
    chosen = of_rows.gather(1, torch.tensor(tokens, device=of_rows.device)[:, None]).flatten().tolist()
    values, ids = (found.tolist() for found in of_rows.topk(min(most, of_rows.shape[1])))
    return [
        TokenLogprobs(of_token, tuple(zip(i, v, strict=True)))
        for of_token, i, v in zip(chosen, ids, values, strict=True)
    ]
