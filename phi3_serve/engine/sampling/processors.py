"""Logits processors: they change the scores of the next token before one is chosen.

One function per parameter works on all rows of the batch that request it, in the order of transformers 5.23
(generation/utils.py, _get_logits_processor). Each implements the class of the same name in
generation/logits_process.py. A row that requests none costs nothing.
"""

import math
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from phi3_serve.core.engine_request import EngineRequest
from phi3_serve.engine.sampling.biases import SequenceBiases
from phi3_serve.engine.sampling.masks import PendingMask
from phi3_serve.engine.sampling.ngrams import followers
from phi3_serve.resolved_parameters import ResolvedParameters

RULED_OUT = -math.inf  # the score of a token that cannot be chosen


class ScoreSettings:
    """What processors and warpers need of one request, computed once. What no parameter asks for costs nothing."""

    def __init__(self, request: EngineRequest) -> None:
        p = request.parameters
        self.parameters = p
        self.num_prompt_tokens = len(request.prompt_ids)
        self.min_length = request.min_length
        self.max_length = request.max_length
        self.eos_token_ids = list(p.eos_token_ids)
        self.prompt_token_ids = np.unique(request.prompt_ids) if p.encoder_repetition_penalty != 1.0 else None
        self.biases = SequenceBiases(p.sequence_bias)
        self.min_length_ids = [*p.eos_token_ids, *p.ignored_eos_token_ids]
        self.bans = _bans(p.bad_words_ids, set(p.eos_token_ids))
        self.bans_of_answer = SequenceBiases((ids, RULED_OUT) for ids in p.bad_words_ids_of_answer)
        is_bos_forced = self.num_prompt_tokens == 1 and p.forced_bos_token_id is not None
        self.begin_index = self.num_prompt_tokens + is_bos_forced  # position of the first token that is chosen freely
        self.min_tokens_to_keep = len(self.eos_token_ids) + 1 if p.is_beam_search else 1
        self.allowed_token_ids = torch.tensor(sorted(set(p.allowed_token_ids)), dtype=torch.long)
        self.structured_kind = "" if p.structured_output is None else p.structured_output.kind
        self.is_constrained = request.constraint is not None
        self.processors = tuple(name for name, (is_requested, _) in _PROCESSORS.items() if is_requested(self))


@dataclass(slots=True)
class ScoreRow:
    """One row of scores, and what the processors need to change it."""

    settings: ScoreSettings
    history: "array[int]"  # token ids of prompt and answer so far
    logit_index: int  # its row of the step's logits
    negative_prompt_logit_index: int = -1  # with guidance, the row of the negative prompt's logits
    chosen_by_earlier_groups: list[int] = field(default_factory=list)  # tokens of earlier beam groups in this step
    mask: PendingMask | None = None  # with a constraint, the tokens that it allows


def process(scores: Tensor, rows: Sequence[ScoreRow], logits: Tensor) -> None:
    """Change ``scores`` in place.

    Args:
        scores: float32 [rows, vocabulary].
        rows: describe the rows of ``scores``.
        logits: those of the whole step, of any float type, which include the negative prompts'.
    """
    indices_by_name: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        for name in row.settings.processors:
            indices_by_name.setdefault(name, []).append(index)
    with np.errstate(over="ignore", invalid="ignore"):  # what float32 cannot hold becomes infinite, as in torch
        for name, processor in _PROCESSORS.items():
            if indices := indices_by_name.get(name):
                processor.apply(scores, indices, [rows[index] for index in indices], logits)


def _guidance(scores: Tensor, indices: list[int], rows: list[ScoreRow], logits: Tensor) -> None:
    conditional = scores[indices].log_softmax(-1)
    unconditional = logits[[row.negative_prompt_logit_index for row in rows]].float().log_softmax(-1)
    scale = _column(rows, lambda p: p.guidance_scale, scores)
    scores[indices] = scale * (conditional - unconditional) + unconditional


def _sequence_bias(scores: Tensor, indices: list[int], rows: list[ScoreRow], _: Tensor) -> None:
    _add_biases(scores, indices, rows, [row.settings.biases for row in rows])


def _bad_words(scores: Tensor, indices: list[int], rows: list[ScoreRow], _: Tensor) -> None:
    _add_biases(scores, indices, rows, [row.settings.bans for row in rows])


def _bad_words_of_answer(scores: Tensor, indices: list[int], rows: list[ScoreRow], _: Tensor) -> None:
    """As ``bad_words`` of vLLM (v1/sample/ops/bad_words.py): a word that begins in the prompt is not looked for."""
    starts = [row.settings.num_prompt_tokens for row in rows]
    _add_biases(scores, indices, rows, [row.settings.bans_of_answer for row in rows], starts)


def _add_biases(
    scores: Tensor,
    indices: list[int],
    rows: list[ScoreRow],
    biases: list[SequenceBiases],
    starts: Iterable[int] = repeat(0),
) -> None:
    of_rows = [of_row.after(row.history, start) for row, of_row, start in zip(rows, biases, starts, strict=False)]
    found = [(index, *of_row) for index, of_row in zip(indices, of_rows, strict=True) if of_row is not None]
    if found:
        counts = [len(tokens) for _, tokens, _ in found]
        row_indices = torch.from_numpy(np.repeat([index for index, _, _ in found], counts))
        ids = torch.from_numpy(np.concatenate([tokens for _, tokens, _ in found]))
        values = torch.from_numpy(np.concatenate([of_row for _, _, of_row in found]))
        scores[row_indices, ids] += values.to(scores.device)


def _diversity(scores: Tensor, indices: list[int], rows: list[ScoreRow], _: Tensor) -> None:
    for index, row in zip(indices, rows, strict=True):
        if row.chosen_by_earlier_groups:
            counts = torch.bincount(torch.tensor(row.chosen_by_earlier_groups), minlength=scores.shape[1])
            scores[index] -= row.settings.parameters.diversity_penalty * counts.to(scores.device)


def _encoder_repetition(scores: Tensor, indices: list[int], rows: list[ScoreRow], _: Tensor) -> None:
    penalties = [1 / row.settings.parameters.encoder_repetition_penalty for row in rows]
    _penalise(scores, indices, [row.settings.prompt_token_ids for row in rows], penalties)


def _repetition(scores: Tensor, indices: list[int], rows: list[ScoreRow], _: Tensor) -> None:
    penalties = [row.settings.parameters.repetition_penalty for row in rows]
    windows = [row.settings.parameters.repeat_last_n for row in rows]
    looked_at = [_ids(row.history)[-n if n > 0 else 0 :] for row, n in zip(rows, windows, strict=True)]
    _penalise(scores, indices, looked_at, penalties)


def _presence_and_frequency(scores: Tensor, indices: list[int], rows: list[ScoreRow], _: Tensor) -> None:
    """OpenAI's penalties, over the answer alone: https://platform.openai.com/docs/guides/text-generation."""
    for index, row in zip(indices, rows, strict=True):
        p = row.settings.parameters
        tokens, counts = np.unique(_ids(row.history)[row.settings.num_prompt_tokens :], return_counts=True)
        penalty = p.presence_penalty + p.frequency_penalty * counts.astype(np.float32)
        scores[index, torch.from_numpy(tokens)] -= torch.from_numpy(penalty).to(scores)


def _penalise(scores: Tensor, indices: list[int], tokens: list[Any], penalties: list[float]) -> None:
    """Apply each row's penalty to its ``tokens``, once even to a token that is listed twice.

    Keskar et al. 2019, CTRL, https://arxiv.org/abs/1909.05858, section 4.1.
    """
    counts = [len(of_row) for of_row in tokens]
    row_indices, ids = torch.from_numpy(np.repeat(indices, counts)), torch.from_numpy(np.concatenate(tokens))
    penalty = torch.from_numpy(np.repeat(np.array(penalties, dtype=np.float32), counts)).to(scores.device)
    before = scores[row_indices, ids]
    scores[row_indices, ids] = torch.where(before < 0, before * penalty, before / penalty)


def _no_repeat_ngram(scores: Tensor, indices: list[int], rows: list[ScoreRow], _: Tensor) -> None:
    repeated = []
    for row in rows:
        ids, size = _ids(row.history), row.settings.parameters.no_repeat_ngram_size
        repeated.append(followers(ids, ids[len(ids) + 1 - size :]) if len(ids) >= size else [])
    _rule_out(scores, indices, repeated)


def _encoder_no_repeat_ngram(scores: Tensor, indices: list[int], rows: list[ScoreRow], _: Tensor) -> None:
    repeated = []
    for row in rows:
        ids = _ids(row.history)
        start = len(ids) + 1 - row.settings.parameters.encoder_no_repeat_ngram_size
        prompt = ids[: row.settings.num_prompt_tokens]
        repeated.append(followers(prompt, ids[start:]) if start >= 0 else [])
    _rule_out(scores, indices, repeated)


def _min_length(scores: Tensor, indices: list[int], rows: list[ScoreRow], _: Tensor) -> None:
    """A structured answer to which only an end is left ends, however short it is."""
    ends = [row.settings.min_length_ids if _must_go_on(row) else [] for row in rows]
    _rule_out(scores, indices, ends)


def _must_go_on(row: ScoreRow) -> bool:
    if len(row.history) >= row.settings.min_length:
        return False
    return row.mask is None or not row.mask.get().allows_only(row.settings.min_length_ids)


def _allowed(scores: Tensor, indices: list[int], rows: list[ScoreRow], _: Tensor) -> None:
    """As PrefixConstrainedLogitsProcessor with the same tokens at every step."""
    for index, row in zip(indices, rows, strict=True):
        allowed = row.settings.allowed_token_ids = row.settings.allowed_token_ids.to(scores.device)
        kept = scores[index, allowed]
        scores[index] = RULED_OUT
        scores[index, allowed] = kept


def _forced_bos(scores: Tensor, indices: list[int], rows: list[ScoreRow], _: Tensor) -> None:
    for index, row in zip(indices, rows, strict=True):
        forced = row.settings.parameters.forced_bos_token_id
        if forced is not None and len(row.history) == 1:
            _force(scores, index, [forced])


def _forced_eos(scores: Tensor, indices: list[int], rows: list[ScoreRow], _: Tensor) -> None:
    for index, row in zip(indices, rows, strict=True):
        if len(row.history) == row.settings.max_length - 1:
            _force(scores, index, list(row.settings.parameters.forced_eos_token_ids))


def _remove_invalid(scores: Tensor, indices: list[int], rows: list[ScoreRow], _: Tensor) -> None:
    limits = torch.finfo(scores.dtype)
    scores[indices] = scores[indices].nan_to_num(nan=0.0, posinf=limits.max, neginf=limits.min)


def _exponential_decay(scores: Tensor, indices: list[int], rows: list[ScoreRow], _: Tensor) -> None:
    for index, row in zip(indices, rows, strict=True):
        start, factor = row.settings.parameters.exponential_decay_length_penalty or (0, 1.0)
        num_tokens_after_start = len(row.history) - (start + row.settings.num_prompt_tokens)
        if num_tokens_after_start > 0:
            ends = row.settings.eos_token_ids
            before = scores[index, ends]
            bonus = before.abs() * (pow(factor, num_tokens_after_start) - 1)
            scores[index, ends] = before + bonus.masked_fill(~before.isfinite(), 0.0)


def _suppress(scores: Tensor, indices: list[int], rows: list[ScoreRow], _: Tensor) -> None:
    _rule_out(scores, indices, [row.settings.parameters.suppress_tokens for row in rows])


def _begin_suppress(scores: Tensor, indices: list[int], rows: list[ScoreRow], _: Tensor) -> None:
    tokens = [
        row.settings.parameters.begin_suppress_tokens if len(row.history) == row.settings.begin_index else ()
        for row in rows
    ]
    _rule_out(scores, indices, tokens)


def _constrain(scores: Tensor, indices: list[int], rows: list[ScoreRow], _: Tensor) -> None:
    """As a processor that is given to ``generate`` in ``logits_processor``."""
    masks = [(index, row.mask.get()) for index, row in zip(indices, rows, strict=True) if row.mask is not None]
    if ruled_out := [(index, mask.token_ids) for index, mask in masks if not mask.are_allowed]:
        scores[_places(ruled_out)] = RULED_OUT
    if allowed := [(index, mask.token_ids) for index, mask in masks if mask.are_allowed]:
        places = _places(allowed)
        kept = scores[places]
        scores[[index for index, _ in allowed]] = RULED_OUT
        scores[places] = kept


def _renormalize(scores: Tensor, indices: list[int], rows: list[ScoreRow], _: Tensor) -> None:
    scores[indices] = scores[indices].log_softmax(-1)


class Processor(NamedTuple):
    """One logits processor."""

    is_requested: Callable[[ScoreSettings], object]
    apply: Callable[[Tensor, list[int], list[ScoreRow], Tensor], None]  # (scores, row indices, rows, logits)


# In the order of transformers; diversity is where 4.55 had it. presence_and_frequency is OpenAI's and
# bad_words_of_answer is vLLM's. Both are not in transformers; they follow what they resemble most.
_PROCESSORS: dict[str, Processor] = {
    "guidance": Processor(lambda s: s.parameters.is_guided, _guidance),
    "sequence_bias": Processor(lambda s: s.biases, _sequence_bias),
    "diversity": Processor(lambda s: s.parameters.diversity_penalty, _diversity),
    "encoder_repetition": Processor(lambda s: s.parameters.encoder_repetition_penalty != 1.0, _encoder_repetition),
    "repetition": Processor(
        lambda s: s.parameters.repetition_penalty != 1.0 and s.parameters.repeat_last_n != 0, _repetition
    ),
    "presence_and_frequency": Processor(
        lambda s: s.parameters.presence_penalty or s.parameters.frequency_penalty, _presence_and_frequency
    ),
    "no_repeat_ngram": Processor(lambda s: s.parameters.no_repeat_ngram_size, _no_repeat_ngram),
    "encoder_no_repeat_ngram": Processor(lambda s: s.parameters.encoder_no_repeat_ngram_size, _encoder_no_repeat_ngram),
    "bad_words": Processor(lambda s: s.bans, _bad_words),
    "bad_words_of_answer": Processor(lambda s: s.bans_of_answer, _bad_words_of_answer),
    "min_length": Processor(lambda s: s.min_length_ids and s.min_length > s.num_prompt_tokens, _min_length),
    "allowed": Processor(lambda s: s.parameters.allowed_token_ids, _allowed),
    "forced_bos": Processor(
        lambda s: s.parameters.forced_bos_token_id is not None and s.num_prompt_tokens == 1, _forced_bos
    ),
    "forced_eos": Processor(lambda s: s.parameters.forced_eos_token_ids, _forced_eos),
    "remove_invalid": Processor(lambda s: s.parameters.remove_invalid_values, _remove_invalid),
    "exponential_decay": Processor(
        lambda s: s.parameters.exponential_decay_length_penalty is not None and s.eos_token_ids, _exponential_decay
    ),
    "suppress": Processor(lambda s: s.parameters.suppress_tokens, _suppress),
    "begin_suppress": Processor(lambda s: s.parameters.begin_suppress_tokens, _begin_suppress),
    # Where generate() puts processors of the caller. No later one allows again what this one rules out.
    "constrain": Processor(lambda s: s.is_constrained, _constrain),
    # Sampling needs no renormalisation before its softmax, and beam search renormalises after the warpers. In a greedy
    # choice it matters only for infinite scores, which become nan.
    "renormalize": Processor(lambda s: s.parameters.renormalize_logits and s.parameters.is_greedy, _renormalize),
}


def _column(rows: list[ScoreRow], read: Callable[[ResolvedParameters], float], like: Tensor) -> Tensor:
    """One parameter of each row, [rows, 1]."""
    return torch.tensor([[read(row.settings.parameters)] for row in rows], dtype=like.dtype, device=like.device)


def _rule_out(scores: Tensor, indices: list[int], tokens: Sequence[Sequence[int]]) -> None:
    of_rows = [(index, np.array(of_row, dtype=np.int64)) for index, of_row in zip(indices, tokens, strict=True)]
    if any(len(of_row) for _, of_row in of_rows):
        scores[_places(of_rows)] = RULED_OUT


def _places(of_rows: Sequence[tuple[int, Any]]) -> tuple[Tensor, Tensor]:
    """Row and token of each score that is meant by pairs of a row and its token ids, int64."""
    row_indices = np.repeat([index for index, _ in of_rows], [len(ids) for _, ids in of_rows])
    return torch.from_numpy(row_indices), torch.from_numpy(np.concatenate([ids for _, ids in of_rows]))


def _force(scores: Tensor, index: int, tokens: list[int]) -> None:
    scores[index] = RULED_OUT
    scores[index, tokens] = 0


def _ids(history: "array[int]") -> Any:
    return np.frombuffer(history, dtype=np.int64)


def _bans(sequences: Iterable[Sequence[int]], eos_token_ids: set[int]) -> SequenceBiases:
    banned = (ids for ids in sequences if not (len(ids) == 1 and ids[0] in eos_token_ids))
    return SequenceBiases((ids, RULED_OUT) for ids in banned)
