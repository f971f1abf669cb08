"""How a request chooses its tokens: sampling or greedy, beam search, group beam search.

Each owns the sequences of its request, is given processed scores, and says how the sequences go on. Sequences are
forked and dropped here as blocks of the cache; the cache itself is elsewhere.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence as Listed

import torch
from torch import Tensor

from phi3_serve import core
from phi3_serve.core import EngineRequest, FinishReason, TokenLogprobs
from phi3_serve.engine.kvcache.block_manager import BlockManager
from phi3_serve.engine.kvcache.sequence import Sequence
from phi3_serve.engine.sampling.beam import BeamGroup, BeamSearch, BestHypotheses, Candidate, Hypothesis, best_of
from phi3_serve.engine.sampling.processors import Row, Settings
from phi3_serve.engine.sampling.stopping import Stopping
from phi3_serve.engine.sampling.warpers import renormalize, warp


class Decoding(ABC):
    """The rows of one request: its sequences, and with guidance one shadow each, of the negative prompt."""

    def __init__(self, request: EngineRequest, settings: Settings, stopping: Stopping, long_from: int | None) -> None:
        self.request = request
        self.settings = settings
        self.is_done = False
        self.rows = [Sequence(request.prompt_ids, long_from=long_from)]
        self.shadows: list[Sequence] = []
        if settings.is_guided:
            negative = request.parameters.negative_prompt_ids or request.prompt_ids[-1:]
            self.shadows = [Sequence(negative, long_from=long_from, follows_crossing=False)]
        self.generator = _generator(request.parameters.seed)
        self._stopping = stopping
        self._has_begun = False
        self._gives_scores = bool(request.parameters.output_scores)

    @property
    @abstractmethod
    def num_rows(self) -> int:
        """Rows once the prompt is read."""

    @property
    def num_rounds(self) -> int:
        """Choices within one step, each of which sees those before it."""
        return 1

    @property
    def families(self) -> tuple[list[Sequence], list[Sequence]]:
        """The sequences, by what they descend from."""
        return self.rows, self.shadows

    @property
    def sequences(self) -> list[Sequence]:
        """All that hold blocks."""
        return [*self.rows, *self.shadows]

    def begin(self, blocks: BlockManager) -> list[int]:
        """Make of the prompt, once it is read, as many rows as there are; for each row its row of the logits."""
        self._stopping.begin()
        if self._has_begun:
            return list(range(len(self.rows)))
        self._has_begun = True
        for family in self.families:
            family += [family[0].fork(blocks) for _ in range(self.num_rows - 1) if family]
        return [0] * self.num_rows

    @abstractmethod
    def score_rows(self, number: int, logits: Listed[int], shadow_logits: Listed[int]) -> list[Row]:
        """What is to be scored in round ``number``; ``logits`` are the rows of the logits that belong to ours."""

    @abstractmethod
    def result(self) -> tuple[core.GeneratedSequence, ...]:
        """The sequences of the answer, best first."""

    def _row(self, at: int, logits: Listed[int], shadow_logits: Listed[int]) -> Row:
        shadow = shadow_logits[at] if shadow_logits else -1
        return Row(self.settings, self.rows[at].tokens, logits[at], shadow)

    def drop(self, blocks: BlockManager) -> None:
        """Give all blocks back."""
        for sequence in self.sequences:
            sequence.drop(blocks)


class Sampling(Decoding):
    """Sequences that go on each for itself: greedy, or drawn."""

    def __init__(self, request: EngineRequest, settings: Settings, stopping: Stopping, long_from: int | None) -> None:
        super().__init__(request, settings, stopping, long_from)
        self.numbers = list(range(self.num_rows))  # which sequence of the answer each row is
        self._finished: dict[int, core.GeneratedSequence] = {}
        self._scores: list[list[float]] = [[] for _ in self.numbers]
        self._logprobs: list[list[TokenLogprobs]] = [[] for _ in self.numbers]

    @property
    def num_rows(self) -> int:
        """One row for each sequence asked for."""
        return self.request.parameters.num_return_sequences or 1

    def score_rows(self, number: int, logits: Listed[int], shadow_logits: Listed[int]) -> list[Row]:
        """One row for each sequence, or one for each drafted token and one for the token after them."""
        draft = self.rows[0].draft
        if not draft:
            return [self._row(at, logits, shadow_logits) for at in range(len(self.rows))]
        rows = [Row(self.settings, self.rows[0].tokens, logits[0])]
        for token in draft:
            history = rows[-1].history[:]
            history.append(token)
            rows.append(Row(self.settings, history, rows[-1].logit + 1))
        return rows

    def accept(
        self,
        tokens: Listed[int],
        scores: Listed[float],
        logprobs: Listed[TokenLogprobs],
        blocks: BlockManager,
    ) -> list[int]:
        """Append the chosen ``tokens``, one for each row scored; the new tokens of the first sequence.

        ``scores`` and ``logprobs`` are empty where they were not asked for.
        """
        if self.rows[0].draft:
            return self._accept_draft(tokens, scores, logprobs, blocks)
        ended = []
        for at, token in enumerate(tokens):
            if self._append(at, token, scores[at : at + 1], logprobs[at : at + 1]):
                ended.append(at)
        for at in reversed(ended):
            self._remove(at, blocks)
        self.is_done = not self.rows
        return list(tokens[:1])

    def _accept_draft(
        self, tokens: Listed[int], scores: Listed[float], logprobs: Listed[TokenLogprobs], blocks: BlockManager
    ) -> list[int]:
        """The drafted tokens are right as far as they are those that were chosen."""
        draft, self.rows[0].draft = self.rows[0].draft, ()
        new: list[int] = []
        for at, token in enumerate(tokens):
            new.append(token)
            if self._append(0, token, scores[at : at + 1], logprobs[at : at + 1]):
                self._remove(0, blocks)
                self.is_done = True
                break
            if at < len(draft) and token != draft[at]:
                break
        return new

    def _append(
        self, at: int, token: int, score: Listed[float], logprobs: Listed[TokenLogprobs]
    ) -> FinishReason | None:
        sequence, number = self.rows[at], self.numbers[at]
        reason = self._stopping.reason(sequence.tokens, token)
        _go_on(sequence, token)
        if self.shadows:
            _go_on(self.shadows[at], token)
        self._scores[number] += score
        self._logprobs[number] += logprobs
        if reason is not None:
            kept = tuple(self._scores[number]) if self._gives_scores else None
            of_tokens = tuple(self._logprobs[number]) if self.request.parameters.top_logprobs is not None else None
            self._finished[number] = core.GeneratedSequence(sequence.new_token_ids, reason, kept, of_tokens)
        return reason

    def _remove(self, at: int, blocks: BlockManager) -> None:
        del self.numbers[at]
        for family in self.families:
            if family:
                family.pop(at).drop(blocks)

    def result(self) -> tuple[core.GeneratedSequence, ...]:
        """The sequences in their order."""
        return tuple(self._finished[number] for number in sorted(self._finished))


class _Beams(Decoding):
    """What both kinds of beam search do with their rows."""

    def __init__(self, request: EngineRequest, settings: Settings, stopping: Stopping, long_from: int | None) -> None:
        super().__init__(request, settings, stopping, long_from)
        self._sums = [0.0] * self.num_rows  # summed log-probabilities
        self._scores: list[tuple[float, ...]] = [()] * self.num_rows

    @property
    def num_rows(self) -> int:
        """One row for each beam."""
        return self.request.parameters.num_beams or 1

    @abstractmethod
    def choose(self, number: int, scores: Tensor, blocks: BlockManager) -> None:
        """Go on from processed log-probabilities ``scores`` [rows of round ``number``, vocabulary]."""

    @property
    def _num_candidates(self) -> int:
        """For each beam; enough that as many as there are beams do not end."""
        return max(2, 1 + len(self.settings.ends))

    def _continue(self, chosen: Listed[Candidate], blocks: BlockManager) -> None:
        """The beams of the next step: forks of those that live on. ``chosen`` name their beam by its row."""
        forked: set[int] = set()
        rows = []
        for candidate in chosen:
            parent = self.rows[candidate.beam]
            rows.append(parent.fork(blocks) if candidate.beam in forked else parent)
            forked.add(candidate.beam)
        for at in set(range(len(self.rows))) - forked:
            self.rows[at].drop(blocks)
        for row, candidate in zip(rows, chosen, strict=True):
            _go_on(row, candidate.token)
        # transformers does not reorder the negative prompt's rows with the beams, so these stay where they are
        for shadow, candidate in zip(self.shadows, chosen, strict=False):
            _go_on(shadow, candidate.token)
        self.rows = rows


class Beams(_Beams):
    """Beam search and beam sampling."""

    def __init__(self, request: EngineRequest, settings: Settings, stopping: Stopping, long_from: int | None) -> None:
        super().__init__(request, settings, stopping, long_from)
        self._search = BeamSearch(
            self.num_rows,
            length_penalty=request.parameters.length_penalty or 0.0,
            early_stopping=request.parameters.early_stopping or False,
            max_new_tokens=request.max_length - len(request.prompt_ids),
        )
        self._sums[1:] = [-1e9] * (self.num_rows - 1)  # so that the beams do not all take the same token first

    def score_rows(self, number: int, logits: Listed[int], shadow_logits: Listed[int]) -> list[Row]:
        """One row for each beam."""
        return [self._row(at, logits, shadow_logits) for at in range(len(self.rows))]

    def choose(self, number: int, scores: Tensor, blocks: BlockManager) -> None:
        """Take the best continuations, or draw them."""
        if self.request.parameters.do_sample:
            scores = warp(scores, [self.settings] * len(scores))
        if self.request.parameters.renormalize_logits:
            scores = renormalize(scores)
        candidates = self._candidates(scores)
        kept = self._token_scores(scores, candidates)
        histories = [row.tokens for row in self.rows]
        is_end = [self._stopping.reason(histories[c.beam], c.token) is not None for c in candidates]

        def hypothesis(score: float, candidate: Candidate) -> Hypothesis:
            ids = (*self.rows[candidate.beam].new_token_ids, candidate.token)
            return Hypothesis(score, ids, (*self._scores[candidate.beam], kept.get(candidate, 0.0)))

        num_new_tokens = len(self.rows[0]) + 1 - self.rows[0].num_prompt_tokens
        living = self._search.advance(candidates, is_end, hypothesis, num_new_tokens)
        if self._search.is_done:
            self.is_done = True
            return
        self._sums = [candidate.score for candidate in living]
        self._scores = [(*self._scores[c.beam], kept.get(c, 0.0)) for c in living]
        self._continue(living, blocks)

    def _candidates(self, scores: Tensor) -> list[Candidate]:
        """The best continuations of all beams, best first; with sampling drawn without replacement, in that order."""
        total = (scores + torch.tensor(self._sums, device=scores.device)[:, None]).flatten()
        count = min(self._num_candidates * len(self.rows), len(total))
        if self.request.parameters.do_sample:
            ids = torch.multinomial(total.softmax(-1)[None], count, generator=self.generator)[0]
            values = total[ids]
        else:
            values, ids = total.topk(count)
        pairs = zip(values.tolist(), ids.tolist(), strict=True)
        return [Candidate(value, index % scores.shape[1], index // scores.shape[1]) for value, index in pairs]

    def _token_scores(self, scores: Tensor, candidates: list[Candidate]) -> dict[Candidate, float]:
        if not self._gives_scores:
            return {}
        of_token = scores.log_softmax(-1)[[c.beam for c in candidates], [c.token for c in candidates]]
        return dict(zip(candidates, of_token.tolist(), strict=True))

    def result(self) -> tuple[core.GeneratedSequence, ...]:
        """The best finished beams."""
        ends = set(self.settings.ends)
        found = []
        for best in self._search.finished[: self.request.parameters.num_return_sequences or 1]:
            history = self.rows[0].tokens[: self.rows[0].num_prompt_tokens]
            history.extend(best.token_ids[:-1])
            completes = self._stopping.completes_string(history, best.token_ids[-1])
            reason: FinishReason = "stop" if best.token_ids[-1] in ends or completes else "length"
            found.append(core.GeneratedSequence(best.token_ids, reason, best.path if self._gives_scores else None))
        # As transformers does where too few beams can end, which takes scores of -inf.
        missing = (self.request.parameters.num_return_sequences or 1) - len(found)
        fill = self.request.parameters.pad_token_id or (self.settings.ends or [0])[0]
        return (*found, *[core.GeneratedSequence((fill,), "stop", (0.0,) if self._gives_scores else None)] * missing)


class GroupBeams(_Beams):
    """Diverse beam search, as transformers 4.55 had it: group after group, each seeing what the earlier chose."""

    def __init__(self, request: EngineRequest, settings: Settings, stopping: Stopping, long_from: int | None) -> None:
        super().__init__(request, settings, stopping, long_from)
        p = request.parameters
        self._size = self.num_rows // self.num_rounds
        self._groups = [
            BeamGroup(
                BestHypotheses(
                    self._size,
                    length_penalty=p.length_penalty or 0.0,
                    early_stopping=p.early_stopping or False,
                    max_new_tokens=request.max_length - len(request.prompt_ids),
                ),
                frozenset(settings.ends),
            )
            for _ in range(self.num_rounds)
        ]
        self._pad = p.pad_token_id or 0
        # One living beam per group at first, so that a group's beams do not all take the same tokens.
        self._sums = [0.0 if at % self._size == 0 else -1e9 for at in range(self.num_rows)]
        self._chosen: list[Candidate] = []  # at this step, by the groups so far

    @property
    def num_rounds(self) -> int:
        """The groups choose one after another."""
        return self.request.parameters.num_beam_groups or 1

    def score_rows(self, number: int, logits: Listed[int], shadow_logits: Listed[int]) -> list[Row]:
        """The rows of group ``number``, none if it is done."""
        if number == 0:
            self._chosen = []
        first = number * self._size
        if self._groups[number].is_done:
            self._chosen += [Candidate(0.0, self._pad, first)] * self._size
            return []
        penalised = [candidate.token for candidate in self._chosen]
        rows = [self._row(at, logits, shadow_logits) for at in range(first, first + self._size)]
        for row in rows:
            row.penalised = penalised
        return rows

    def choose(self, number: int, scores: Tensor, blocks: BlockManager) -> None:
        """Let group ``number`` choose; the last group's choice ends the step."""
        if len(scores):
            self._advance(number, scores)
        if number < self.num_rounds - 1:
            return
        chosen, self._chosen = self._chosen, []
        all_stop = all(self._stops(candidate) for candidate in chosen)
        self._sums = [candidate.score for candidate in chosen]
        self._continue(chosen, blocks)
        if all_stop or all(group.is_done for group in self._groups):
            self._finish_living()
            self.is_done = True

    def _advance(self, number: int, scores: Tensor) -> None:
        if self.request.parameters.renormalize_logits:
            scores = renormalize(scores)
        first = number * self._size
        group, beams = self._groups[number], self.rows[first : first + self._size]
        num_new_tokens = len(beams[0]) + 1 - beams[0].num_prompt_tokens
        ranked = self._ranked(scores, self._sums[first : first + self._size])
        kept = scores.log_softmax(-1) if self._gives_scores else torch.zeros_like(scores)
        # the end that transformers writes after a finished beam is its first end-of-sequence token
        of_end = kept[:, (self.settings.ends or [0])[0]].tolist()
        paths = [(*self._scores[first + at], of_end[at]) for at in range(self._size)]
        living = group.advance(ranked, [beam.new_token_ids for beam in beams], paths, num_new_tokens)
        self._scores[first : first + self._size] = [
            (*self._scores[first + c.beam], float(kept[c.beam, c.token])) for c in living
        ]
        self._chosen += [Candidate(c.score, c.token, first + c.beam) for c in living]

    def _ranked(self, scores: Tensor, sums: list[float]) -> list[Candidate]:
        total = (scores + torch.tensor(sums, device=scores.device)[:, None]).flatten()
        best = total.topk(min(self._num_candidates * self._size, len(total)))
        pairs = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        return [Candidate(value, index % scores.shape[1], index // scores.shape[1]) for value, index in pairs]

    def _stops(self, candidate: Candidate) -> bool:
        history = self.rows[candidate.beam].tokens
        is_full = len(history) + 1 >= self.request.max_length
        return is_full or self._stopping.is_late() or self._stopping.completes_string(history, candidate.token)

    def _finish_living(self) -> None:
        for number, group in enumerate(self._groups):
            if group.is_done:
                continue
            for at in range(number * self._size, (number + 1) * self._size):
                ids = self.rows[at].new_token_ids
                group.best.add(ids, self._scores[at], self._sums[at], len(ids))

    def result(self) -> tuple[core.GeneratedSequence, ...]:
        """The best hypotheses of all groups, with their end where it fits."""
        best = best_of(self._groups, self.request.parameters.num_return_sequences or 1)
        num_prompt = len(self.request.prompt_ids)
        longest = min(max(len(h.token_ids) for h in best) + 1, self.request.max_length - num_prompt)
        ends = self.settings.ends
        found = []
        for hypothesis in best:
            is_ended = bool(ends) and len(hypothesis.token_ids) < longest
            ids = (*hypothesis.token_ids, ends[0]) if is_ended else hypothesis.token_ids
            scores = (*hypothesis.path, 0.0)[: len(ids)] if self._gives_scores else None
            found.append(core.GeneratedSequence(ids, "stop" if is_ended else "length", scores))
        return tuple(found)


def decoding_for(request: EngineRequest, settings: Settings, stopping: Stopping, long_from: int | None) -> Decoding:
    """The kind of decoding that ``request`` asks for."""
    parameters = request.parameters
    if (parameters.num_beams or 1) == 1:
        return Sampling(request, settings, stopping, long_from)
    kind = Beams if (parameters.num_beam_groups or 1) == 1 else GroupBeams
    return kind(request, settings, stopping, long_from)


def _go_on(sequence: Sequence, token: int) -> None:
    """Append ``token``; only it is pending then, what was cached beyond belonged to a refused draft."""
    sequence.tokens.append(token)
    sequence.num_cached = min(sequence.num_cached, len(sequence) - 1)


def _generator(seed: int | None) -> torch.Generator | None:
    return None if seed is None else torch.Generator().manual_seed(seed)
