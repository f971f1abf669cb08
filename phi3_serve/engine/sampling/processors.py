"""Logits processors: what changes the scores of the next token before one is chosen.

One function per parameter, over all rows of the batch that ask for it, in the order of transformers 5.23
(generation/utils.py, _get_logits_processor); each is the class of the same name in generation/logits_process.py.
A row that asks for none costs nothing.
"""

import math
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from phi3_serve.core import EngineRequest
from phi3_serve.parameters import GenerationParameters

Biases = tuple[tuple[tuple[int, ...], int, float], ...]  # (tokens before, token, what is added to its score)
NEVER = -math.inf


class Settings:
    """What the processors need of one request, made once."""

    def __init__(self, request: EngineRequest) -> None:
        p = request.parameters
        self.parameters: GenerationParameters = p
        self.num_prompt_tokens = len(request.prompt_ids)
        self.min_length = request.min_length
        self.max_length = request.max_length
        self.ends = list(p.eos_token_ids())
        self.prompt = np.unique(request.prompt_ids)
        self.biases = _biases(p.sequence_bias or ())
        self.bans = _bans(p.bad_words_ids or (), self.ends)
        self.forced_ends = _as_list(p.forced_eos_token_id)
        self.prompt_ngrams = _ngrams(request.prompt_ids, p.encoder_no_repeat_ngram_size or 0)
        begins_late = self.num_prompt_tokens == 1 and p.forced_bos_token_id is not None
        self.begin = self.num_prompt_tokens + begins_late
        self.min_tokens_to_keep = len(self.ends) + 1 if (p.num_beams or 1) > 1 else 1
        self.processors = tuple(name for name, (is_asked, _) in _PROCESSORS.items() if is_asked(self))

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken at every step."""
        return not self.parameters.do_sample and (self.parameters.num_beams or 1) == 1

    @property
    def is_guided(self) -> bool:
        """Whether each row has a second one, of the negative prompt."""
        return self.parameters.guidance_scale not in (None, 1.0)


@dataclass(slots=True)
class Row:
    """One row of scores to be processed."""

    settings: Settings
    history: "array[int]"  # prompt and answer so far
    logit: int  # its row of the step's logits
    unconditional: int = -1  # the row of the negative prompt's logits
    penalised: list[int] = field(default_factory=list)  # tokens that earlier beam groups chose at this step


def process(scores: Tensor, rows: Sequence[Row], logits: Tensor) -> None:
    """Change ``scores`` [rows, vocabulary], float32, in place; ``logits`` holds the negative prompts' rows."""
    asked: dict[str, list[int]] = {}
    for at, row in enumerate(rows):
        for name in row.settings.processors:
            asked.setdefault(name, []).append(at)
    with np.errstate(over="ignore", invalid="ignore"):  # what float32 cannot hold is infinite, as in torch
        for name, (_, apply) in _PROCESSORS.items():
            if at_rows := asked.get(name):
                apply(scores, at_rows, [rows[at] for at in at_rows], logits)


def _guidance(scores: Tensor, at: list[int], rows: list[Row], logits: Tensor) -> None:
    conditional = scores[at].log_softmax(-1)
    unconditional = logits[[row.unconditional for row in rows]].float().log_softmax(-1)
    scale = _column(rows, lambda p: p.guidance_scale, scores)
    scores[at] = scale * (conditional - unconditional) + unconditional


def _sequence_bias(scores: Tensor, at: list[int], rows: list[Row], _: Tensor) -> None:
    _add_biases(scores, at, rows, [row.settings.biases for row in rows])


def _bad_words(scores: Tensor, at: list[int], rows: list[Row], _: Tensor) -> None:
    _add_biases(scores, at, rows, [row.settings.bans for row in rows])


def _add_biases(scores: Tensor, at: list[int], rows: list[Row], biases: list[Biases]) -> None:
    totals: dict[tuple[int, int], np.float32] = {}
    for number, row, of_row in zip(at, rows, biases, strict=True):
        for before, token, bias in of_row:
            if _ends_with(row.history, before):
                totals[number, token] = totals.get((number, token), np.float32(0)) + np.float32(bias)
    if totals:
        numbers, ids = torch.tensor(list(totals), device=scores.device).T
        scores[numbers, ids] += torch.tensor(list(totals.values()), device=scores.device)


def _diversity(scores: Tensor, at: list[int], rows: list[Row], _: Tensor) -> None:
    for number, row in zip(at, rows, strict=True):
        if row.penalised:
            counts = torch.bincount(torch.tensor(row.penalised), minlength=scores.shape[1])
            scores[number] -= (row.settings.parameters.diversity_penalty or 0.0) * counts.to(scores.device)


def _encoder_repetition(scores: Tensor, at: list[int], rows: list[Row], _: Tensor) -> None:
    penalties = [1 / _given(row.settings.parameters.encoder_repetition_penalty) for row in rows]
    _penalise(scores, at, [row.settings.prompt for row in rows], penalties)


def _repetition(scores: Tensor, at: list[int], rows: list[Row], _: Tensor) -> None:
    penalties = [_given(row.settings.parameters.repetition_penalty) for row in rows]
    _penalise(scores, at, [_ids(row.history) for row in rows], penalties)


def _presence_and_frequency(scores: Tensor, at: list[int], rows: list[Row], _: Tensor) -> None:
    """OpenAI's penalties, over the answer alone: https://platform.openai.com/docs/guides/text-generation."""
    for number, row in zip(at, rows, strict=True):
        p = row.settings.parameters
        tokens, counts = np.unique(_ids(row.history)[row.settings.num_prompt_tokens :], return_counts=True)
        taken = (p.presence_penalty or 0.0) + (p.frequency_penalty or 0.0) * counts.astype(np.float32)
        scores[number, torch.from_numpy(tokens)] -= torch.from_numpy(taken).to(scores)


def _penalise(scores: Tensor, at: list[int], tokens: list[Any], penalties: list[float]) -> None:
    """Each row's ``tokens``, of which some may stand there twice, by its penalty.

    Keskar et al. 2019, CTRL, https://arxiv.org/abs/1909.05858, section 4.1.
    """
    counts = [len(of_row) for of_row in tokens]
    numbers, ids = torch.from_numpy(np.repeat(at, counts)), torch.from_numpy(np.concatenate(tokens))
    penalty = torch.from_numpy(np.repeat(np.array(penalties, dtype=np.float32), counts)).to(scores.device)
    given = scores[numbers, ids]
    scores[numbers, ids] = torch.where(given < 0, given * penalty, given / penalty)


def _no_repeat_ngram(scores: Tensor, at: list[int], rows: list[Row], _: Tensor) -> None:
    _forbid(
        scores, at, [_repeated(_ids(row.history), row.settings.parameters.no_repeat_ngram_size or 0) for row in rows]
    )


def _encoder_no_repeat_ngram(scores: Tensor, at: list[int], rows: list[Row], _: Tensor) -> None:
    found = []
    for row in rows:
        size = row.settings.parameters.encoder_no_repeat_ngram_size or 0
        last = tuple(row.history[len(row.history) + 1 - size :]) if len(row.history) + 1 >= size else None
        found.append(row.settings.prompt_ngrams.get(last, []) if last is not None else [])
    _forbid(scores, at, found)


def _min_length(scores: Tensor, at: list[int], rows: list[Row], _: Tensor) -> None:
    _forbid(scores, at, [row.settings.ends if len(row.history) < row.settings.min_length else [] for row in rows])


def _forced_bos(scores: Tensor, at: list[int], rows: list[Row], _: Tensor) -> None:
    for number, row in zip(at, rows, strict=True):
        if len(row.history) == 1:
            _force(scores, number, [_given(row.settings.parameters.forced_bos_token_id)])


def _forced_eos(scores: Tensor, at: list[int], rows: list[Row], _: Tensor) -> None:
    for number, row in zip(at, rows, strict=True):
        if len(row.history) == row.settings.max_length - 1:
            _force(scores, number, row.settings.forced_ends)


def _remove_invalid(scores: Tensor, at: list[int], rows: list[Row], _: Tensor) -> None:
    limits = torch.finfo(scores.dtype)
    scores[at] = scores[at].nan_to_num(nan=0.0, posinf=limits.max, neginf=limits.min)


def _exponential_decay(scores: Tensor, at: list[int], rows: list[Row], _: Tensor) -> None:
    for number, row in zip(at, rows, strict=True):
        start, factor = _given(row.settings.parameters.exponential_decay_length_penalty)
        beyond = len(row.history) - (start + row.settings.num_prompt_tokens)
        if beyond > 0:
            of_ends = scores[number, row.settings.ends]
            growth = of_ends.abs() * (pow(factor, beyond) - 1)
            scores[number, row.settings.ends] = of_ends + growth.masked_fill(~of_ends.isfinite(), 0.0)


def _suppress(scores: Tensor, at: list[int], rows: list[Row], _: Tensor) -> None:
    _forbid(scores, at, [row.settings.parameters.suppress_tokens or () for row in rows])


def _begin_suppress(scores: Tensor, at: list[int], rows: list[Row], _: Tensor) -> None:
    begins = [len(row.history) == row.settings.begin for row in rows]
    _forbid(
        scores,
        at,
        [row.settings.parameters.begin_suppress_tokens or () if b else () for row, b in zip(rows, begins, strict=True)],
    )


def _renormalize(scores: Tensor, at: list[int], rows: list[Row], _: Tensor) -> None:
    scores[at] = scores[at].log_softmax(-1)


_Apply = Callable[[Tensor, list[int], list[Row], Tensor], None]

# name: (whether a request asks for it, what it does); the order is that of transformers, diversity where 4.55 had it.
# presence_and_frequency, which is OpenAI's and not in transformers, stands beside the penalty that is most like it.
_PROCESSORS: dict[str, tuple[Callable[[Settings], object], _Apply]] = {
    "guidance": (lambda s: s.is_guided, _guidance),
    "sequence_bias": (lambda s: s.biases, _sequence_bias),
    "diversity": (lambda s: s.parameters.diversity_penalty, _diversity),
    "encoder_repetition": (lambda s: s.parameters.encoder_repetition_penalty not in (None, 1.0), _encoder_repetition),
    "repetition": (lambda s: s.parameters.repetition_penalty not in (None, 1.0), _repetition),
    "presence_and_frequency": (
        lambda s: s.parameters.presence_penalty or s.parameters.frequency_penalty,
        _presence_and_frequency,
    ),
    "no_repeat_ngram": (lambda s: s.parameters.no_repeat_ngram_size, _no_repeat_ngram),
    "encoder_no_repeat_ngram": (lambda s: s.prompt_ngrams, _encoder_no_repeat_ngram),
    "bad_words": (lambda s: s.bans, _bad_words),
    "min_length": (lambda s: s.ends and s.min_length > s.num_prompt_tokens, _min_length),
    "forced_bos": (lambda s: s.parameters.forced_bos_token_id is not None and s.num_prompt_tokens == 1, _forced_bos),
    "forced_eos": (lambda s: s.forced_ends, _forced_eos),
    "remove_invalid": (lambda s: s.parameters.remove_invalid_values, _remove_invalid),
    "exponential_decay": (
        lambda s: s.parameters.exponential_decay_length_penalty is not None and s.ends,
        _exponential_decay,
    ),
    "suppress": (lambda s: s.parameters.suppress_tokens, _suppress),
    "begin_suppress": (lambda s: s.parameters.begin_suppress_tokens, _begin_suppress),
    # After the warpers, where there are any; a greedy choice sees it only where scores are inf: then they become nan.
    "renormalize": (lambda s: s.parameters.renormalize_logits and s.is_greedy, _renormalize),
}


def _column(rows: list[Row], read: Callable[[GenerationParameters], float | None], like: Tensor) -> Tensor:
    """One parameter of each row, [rows, 1]."""
    return torch.tensor([[read(row.settings.parameters)] for row in rows], dtype=like.dtype, device=like.device)


def _forbid(scores: Tensor, at: list[int], tokens: Sequence[Sequence[int]]) -> None:
    pairs = [(number, token) for number, of_row in zip(at, tokens, strict=True) for token in of_row]
    if pairs:
        numbers, ids = torch.tensor(pairs, device=scores.device).T
        scores[numbers, ids] = NEVER


def _force(scores: Tensor, number: int, tokens: list[int]) -> None:
    scores[number] = NEVER
    scores[number, tokens] = 0


def _ids(history: "array[int]") -> Any:
    return np.frombuffer(history, dtype=np.int64)


def _repeated(ids: Any, size: int) -> list[int]:
    """The tokens that would end an n-gram that occurs in ``ids`` already."""
    if len(ids) < size:
        return []
    matches = np.ones(len(ids) - size + 1, dtype=bool)
    for offset in range(size - 1):
        matches &= ids[offset : len(ids) - size + 1 + offset] == ids[len(ids) - size + 1 + offset]
    repeated: list[int] = ids[size - 1 :][matches].tolist()
    return repeated


def _ngrams(ids: Sequence[int], size: int) -> dict[tuple[int, ...], list[int]]:
    """For each (size - 1)-gram of ``ids`` the tokens that follow it."""
    found: dict[tuple[int, ...], list[int]] = {}
    if size:
        for end in range(size, len(ids) + 1):
            found.setdefault(tuple(ids[end - size : end - 1]), []).append(ids[end - 1])
    return found


def _ends_with(history: "array[int]", tokens: tuple[int, ...]) -> bool:
    return not tokens or (len(tokens) <= len(history) and tuple(history[-len(tokens) :]) == tokens)


def _biases(pairs: Iterable[tuple[Sequence[int], float]]) -> Biases:
    """Of equal sequences the last counts, as in the dictionary that transformers makes of them."""
    by_sequence = {tuple(ids): bias for ids, bias in pairs}
    return tuple((ids[:-1], ids[-1], bias) for ids, bias in by_sequence.items())


def _bans(sequences: Iterable[Sequence[int]], ends: list[int]) -> Biases:
    return _biases((ids, NEVER) for ids in sequences if not (len(ids) == 1 and ids[0] in ends))


def _as_list(ids: int | list[int] | None) -> list[int]:
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)


def _given(value: Any) -> Any:
    assert value is not None  # noqa: S101 - the table lets a processor run only where its parameter is set
    return value
