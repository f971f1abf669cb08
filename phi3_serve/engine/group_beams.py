"""Group beam search over ``transformers.generate``, which lost it in version 5.

``GroupBeamSearch`` is handed to ``generate(custom_generate=...)``: generate prepares processors, stopping
criteria and the cache, this runs the steps. Token for token it is ``_group_beam_search`` of transformers 4.55.
"""

from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, SequenceBiasLogitsProcessor, StoppingCriteriaList
from transformers.generation.logits_process import UnbatchedClassifierFreeGuidanceLogitsProcessor
from transformers.generation.utils import GenerateBeamDecoderOnlyOutput

from phi3_serve.engine.beam import BeamGroup, BestHypotheses, Candidate, Hypothesis, best_of

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
        num_beams, prompt_length = input_ids.shape
        size = num_beams // self._num_groups
        ends, pad = generation_config._eos_token_tensor, generation_config._pad_token_tensor
        eos_token_ids: list[int] = [] if ends is None else ends.tolist()
        pad_token_id = 0 if pad is None else int(pad)
        max_new_tokens = generation_config.max_length - prompt_length
        groups = [self._group(size, eos_token_ids, max_new_tokens, generation_config) for _ in range(self._num_groups)]
        processors: Any = self._with_diversity(logits_processor)
        # One living beam per group at first, so that a group's beams do not all take the same tokens.
        beam_scores = torch.full((num_beams,), -1e9, dtype=torch.float, device=input_ids.device)
        beam_scores[::size] = 0
        paths: list[tuple[int, ...]] = [()] * num_beams
        all_scores: list[torch.Tensor] = []
        cache, is_finished = past_key_values, False

        while not is_finished:
            logits, cache = self._forward(model, input_ids, cache, is_first=input_ids.shape[1] == prompt_length)
            step_scores = torch.zeros_like(logits)
            sources, tokens = list(range(num_beams)), [pad_token_id] * num_beams
            new_paths = list(paths)
            self._diversity.chosen = []
            num_new_tokens = input_ids.shape[1] + 1 - prompt_length
            for number, group in enumerate(groups):
                begin, end = number * size, (number + 1) * size
                scores = processors(input_ids[begin:end], logits[begin:end].log_softmax(-1))
                step_scores[begin:end] = scores
                ranked = _ranked(scores + beam_scores[begin:end, None], max(2, 1 + len(eos_token_ids)) * size)
                if group.is_done:
                    beam_scores[begin:end] = 0
                    sources[begin:end] = [begin] * size
                    self._diversity.chosen += tokens[begin:end]
                    continue
                beams = [tuple(row) for row in input_ids[begin:end].tolist()]
                own_paths = [(*paths[begin + i], begin + i) for i in range(size)]
                living = group.advance(ranked, beams, own_paths, num_new_tokens)
                beam_scores[begin:end] = torch.tensor([c.score for c in living], device=input_ids.device)
                sources[begin:end] = [begin + c.beam for c in living]
                tokens[begin:end] = [c.token for c in living]
                new_paths[begin:end] = [own_paths[c.beam] for c in living]
                self._diversity.chosen += tokens[begin:end]
            paths = new_paths
            all_scores.append(step_scores)
            chosen = torch.tensor(tokens, device=input_ids.device)
            input_ids = torch.cat([input_ids[sources], chosen[:, None]], dim=-1)
            cache.reorder_cache(torch.tensor(sources, device=input_ids.device))
            stop = stopping_criteria(input_ids, tuple(all_scores))
            is_finished = all(group.is_done for group in groups) or bool(torch.as_tensor(stop).all())

        _finish_living(groups, input_ids, paths, beam_scores.tolist(), prompt_length)
        best = best_of(groups, generation_config.num_return_sequences)
        end = eos_token_ids[0] if eos_token_ids else pad_token_id
        return _output(best, tuple(all_scores), input_ids, end, pad_token_id, generation_config.max_length)

    @staticmethod
    def _group(size: int, eos_token_ids: list[int], max_new_tokens: int, generation_config: Any) -> BeamGroup:
        best = BestHypotheses(
            size,
            length_penalty=generation_config.length_penalty,
            early_stopping=generation_config.early_stopping,
            max_new_tokens=max_new_tokens,
        )
        return BeamGroup(best, frozenset(eos_token_ids))

    def _with_diversity(self, processors: LogitsProcessorList) -> LogitsProcessorList:
        place = sum(isinstance(processor, BEFORE_DIVERSITY) for processor in processors)
        return LogitsProcessorList([*processors[:place], self._diversity, *processors[place:]])

    @staticmethod
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


def _finish_living(
    groups: list[BeamGroup],
    input_ids: torch.Tensor,
    paths: list[tuple[int, ...]],
    beam_scores: list[float],
    prompt_length: int,
) -> None:
    """The search is over: what still lives is finished as it is."""
    rows = [tuple(row) for row in input_ids.tolist()]
    for number, group in enumerate(groups):
        if group.is_done:
            continue
        for row in range(number * group.best.size, (number + 1) * group.best.size):
            group.best.add(rows[row], paths[row], beam_scores[row], len(rows[row]) - prompt_length)


def _output(
    best: list[Hypothesis],
    scores: Any,  # per step [beams, vocabulary]
    input_ids: torch.Tensor,
    eos_token_id: int,
    pad_token_id: int,
    max_length: int,
) -> GenerateBeamDecoderOnlyOutput:
    """Rows of equal length, as generate() gives them; an end that fits is always the first end-of-sequence id."""
    length = min(max(len(h.token_ids) for h in best) + 1, max_length)
    sequences: Any = input_ids.new_full((len(best), length), pad_token_id)
    beam_indices: Any = input_ids.new_full((len(best), len(scores)), -1)
    for row, hypothesis in enumerate(best):
        num_tokens = len(hypothesis.token_ids)
        sequences[row, :num_tokens] = input_ids.new_tensor(hypothesis.token_ids)
        if num_tokens < length:
            sequences[row, num_tokens] = eos_token_id
        beam_indices[row, : len(hypothesis.path)] = input_ids.new_tensor(hypothesis.path)
    return GenerateBeamDecoderOnlyOutput(sequences=sequences, scores=scores, beam_indices=beam_indices)
