"""Group beam search over ``transformers.generate``, which lost it in version 5.

``GroupBeamSearch`` is handed to ``generate(custom_generate=...)``: generate prepares processors, stopping
criteria and the cache, this runs the steps. Token for token it is ``_group_beam_search`` of transformers 4.55.
"""

from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, SequenceBiasLogitsProcessor, StoppingCriteriaList
from transformers.generation.logits_process import UnbatchedClassifierFreeGuidanceLogitsProcessor
from transformers.generation.utils import GenerateBeamDecoderOnlyOutput

from phi3_serve.engine.sampling.hypotheses import BeamGroup, BestHypotheses, Candidate, Hypothesis, best_of

# The processors of transformers 4.55 that come before the one for diversity.
BEFORE_DIVERSITY = (UnbatchedClassifierFreeGuidanceLogitsProcessor, SequenceBiasLogitsProcessor)


class HammingDiversity(LogitsProcessor):
    """Takes ``penalty`` from a token's score for each beam of an earlier group that chose it at this step."""

    def __init__(self, penalty: float) -> None:
        self.chosen: list[int] = []
        self._penalty = penalty

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [beams of the group, vocabulary], penalised."""
        if not self.chosen:
            return scores
        counts = torch.bincount(torch.tensor(self.chosen, device=scores.device), minlength=scores.shape[-1])
        return scores - self._penalty * counts


class GroupBeamSearch:
    """One group beam search; used once."""

    _ids: torch.Tensor  # int64 [num_beams, tokens so far]
    _sums: torch.Tensor  # float32 [num_beams], summed log-probabilities
    _groups: list[BeamGroup]

    def __init__(self, *, num_groups: int, diversity_penalty: float) -> None:
        self._num_groups = num_groups
        self._diversity = HammingDiversity(diversity_penalty)

    def __call__(
        self,
        model: Any,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: Any,
        past_key_values: Any = None,
        **model_kwargs: Any,
    ) -> GenerateBeamDecoderOnlyOutput:
        """Search from ``input_ids`` [num_beams, prompt tokens], the same prompt in every row."""
        self._begin(input_ids, generation_config, logits_processor)
        cache, is_finished = past_key_values, False
        while not is_finished:
            logits, cache = _forward(model, self._ids, cache, is_first=self._ids.shape[1] == self._prompt_length)
            sources, tokens = self._choose(logits)
            self._ids = torch.cat([self._ids[sources], tokens[:, None]], dim=-1)
            cache.reorder_cache(sources)
            must_stop = torch.as_tensor(stopping_criteria(self._ids, logits))
            is_finished = all(group.is_done for group in self._groups) or bool(must_stop.all())
        self._finish_living()
        return self._output(best_of(self._groups, generation_config.num_return_sequences))

    def _begin(self, input_ids: torch.Tensor, config: Any, processors: LogitsProcessorList) -> None:
        num_beams, self._prompt_length = input_ids.shape
        ends, pad = config._eos_token_tensor, config._pad_token_tensor
        self._ids = input_ids
        self._eos_token_ids: list[int] = [] if ends is None else ends.tolist()
        self._pad_token_id = 0 if pad is None else int(pad)
        self._max_length: int = config.max_length
        self._size = num_beams // self._num_groups
        self._groups = [self._new_group(config) for _ in range(self._num_groups)]
        place = sum(type(processor) in BEFORE_DIVERSITY for processor in processors)  # bad words derive from a bias
        self._processors: Any = LogitsProcessorList([*processors[:place], self._diversity, *processors[place:]])
        # One living beam per group at first, so that a group's beams do not all take the same tokens.
        self._sums = torch.full((num_beams,), -1e9, dtype=torch.float, device=input_ids.device)
        self._sums[:: self._size] = 0
        # Per beam, the rows that its tokens were scored in; per step, the scores, where they are asked for.
        self._paths: list[tuple[int, ...]] = [()] * num_beams
        self._scores: list[torch.Tensor] | None = [] if config.output_scores else None

    def _new_group(self, config: Any) -> BeamGroup:
        best = BestHypotheses(
            self._size,
            length_penalty=config.length_penalty,
            early_stopping=config.early_stopping,
            max_new_tokens=self._max_length - self._prompt_length,
        )
        return BeamGroup(best, frozenset(self._eos_token_ids))

    def _choose(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Per row the row that it goes on from, and its next token; group after group, each seeing the earlier."""
        self._diversity.chosen = []
        if self._scores is not None:
            self._scores.append(torch.zeros_like(logits))
        sources: list[int] = []
        for number, group in enumerate(self._groups):
            rows = slice(number * self._size, (number + 1) * self._size)
            scores = self._processors(self._ids[rows], logits[rows].log_softmax(-1))
            if self._scores is not None:
                self._scores[-1][rows] = scores
            if group.is_done:
                self._sums[rows] = 0
                sources += [rows.start] * self._size
                self._diversity.chosen += [self._pad_token_id] * self._size
                continue
            living = self._advance(group, rows, scores)
            sources += [rows.start + candidate.beam for candidate in living]
            self._diversity.chosen += [candidate.token for candidate in living]
        device = self._ids.device
        return torch.tensor(sources, device=device), torch.tensor(self._diversity.chosen, device=device)

    def _advance(self, group: BeamGroup, rows: slice, scores: torch.Tensor) -> list[Candidate]:
        ranked = _ranked(scores + self._sums[rows, None], max(2, 1 + len(self._eos_token_ids)) * self._size)
        beams = [tuple(row) for row in self._ids[rows].tolist()]
        paths = [(*self._paths[row], row) for row in range(rows.start, rows.stop)]
        living = group.advance(ranked, beams, paths, self._ids.shape[1] + 1 - self._prompt_length)
        self._sums[rows] = torch.tensor([candidate.score for candidate in living], device=self._ids.device)
        self._paths[rows] = [paths[candidate.beam] for candidate in living]
        return living

    def _finish_living(self) -> None:
        """The search is over: what still lives is finished as it is."""
        beams, sums = [tuple(row) for row in self._ids.tolist()], self._sums.tolist()
        num_new_tokens = self._ids.shape[1] - self._prompt_length
        for number, group in enumerate(self._groups):
            if not group.is_done:
                for row in range(number * self._size, (number + 1) * self._size):
                    group.best.add(beams[row], self._paths[row], sums[row], num_new_tokens)

    def _output(self, best: list[Hypothesis]) -> GenerateBeamDecoderOnlyOutput:
        """Rows of equal length, as generate() gives them; an end that fits is the first end-of-sequence id."""
        length = min(max(len(h.token_ids) for h in best) + 1, self._max_length)
        sequences: Any = self._ids.new_full((len(best), length), self._pad_token_id)
        beam_indices: Any = self._ids.new_full((len(best), self._ids.shape[1] - self._prompt_length), -1)
        for row, hypothesis in enumerate(best):
            num_tokens = len(hypothesis.token_ids)
            sequences[row, :num_tokens] = self._ids.new_tensor(hypothesis.token_ids)
            if num_tokens < length:
                sequences[row, num_tokens] = self._eos_token_ids[0] if self._eos_token_ids else self._pad_token_id
            beam_indices[row, : len(hypothesis.path)] = self._ids.new_tensor(hypothesis.path)
        scores: Any = None if self._scores is None else tuple(self._scores)
        return GenerateBeamDecoderOnlyOutput(sequences=sequences, scores=scores, beam_indices=beam_indices)


def _forward(model: Any, input_ids: torch.Tensor, cache: Any, *, is_first: bool) -> tuple[torch.Tensor, Any]:
    """The last position's logits, float32 [beams, vocabulary], and the cache with it."""
    inputs = model.prepare_inputs_for_generation(
        input_ids,
        past_key_values=cache,
        attention_mask=torch.ones_like(input_ids),
        use_cache=True,
        next_sequence_length=None if is_first else 1,
        is_first_iteration=is_first,
    )
    outputs = model(**inputs, return_dict=True)
    return outputs.logits[:, -1, :].float(), outputs.past_key_values


def _ranked(scores: torch.Tensor, count: int) -> list[Candidate]:
    """The ``count`` best of all (beam, token) pairs of ``scores`` [beams, vocabulary], best first."""
    best = scores.view(-1).topk(min(count, scores.numel()), sorted=True)
    vocab_size = scores.shape[-1]
    pairs = zip(best.values.tolist(), best.indices.tolist(), strict=True)
    return [Candidate(score, index % vocab_size, index // vocab_size) for score, index in pairs]
