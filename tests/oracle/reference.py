"""The oracle: one request at a time through ``transformers.generate``.

Slow and right: it defines what every parameter means. Group beam search, which transformers 5 no longer has, is
oracle.group_beams, held to recorded answers of 4.55.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    StoppingCriteriaList,
    StopStringCriteria,
)

from phi3_serve.core.engine_event import Finished
from phi3_serve.core.engine_request import EngineRequest
from phi3_serve.core.event import Failed
from phi3_serve.core.generated_sequence import FinishReason, GeneratedSequence
from phi3_serve.engine.loaded_model import LoadedModel
from phi3_serve.engine.sampling.hypotheses import NO_SCORE
from phi3_serve.errors import EngineFailure, InvalidRequest
from phi3_serve.resolved_parameters import ResolvedParameters
from tests.oracle.group_beams import GroupBeamSearch

if TYPE_CHECKING:
    from tests.oracle.brute_force import BruteForceProcessor

# The parameters that generate() takes as they are; the others are translated below.
FORWARDED = (
    *("do_sample", "early_stopping", "num_beams", "temperature", "top_k", "top_p", "min_p", "typical_p"),
    *("epsilon_cutoff", "eta_cutoff", "top_h", "repetition_penalty", "encoder_repetition_penalty"),
    *(
        "length_penalty",
        "no_repeat_ngram_size",
        "encoder_no_repeat_ngram_size",
        "bad_words_ids",
        "suppress_tokens",
    ),
    *(
        "begin_suppress_tokens",
        "forced_bos_token_id",
        "exponential_decay_length_penalty",
    ),
    *(
        "renormalize_logits",
        "remove_invalid_values",
        "guidance_scale",
        "num_return_sequences",
        "pad_token_id",
    ),
    *("bos_token_id", "max_time", "prompt_lookup_num_tokens"),
)


class Oracle:
    """Answers of ``model.generate``."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._model = loaded.model
        self._tokenizer = loaded.tokenizer
        self._vocab_size = loaded.vocab_size

    def answer(self, request: EngineRequest) -> Finished | Failed:
        """The sequences, or why transformers refuses the request."""
        try:
            return Finished(self._generate(request))
        # IndexError: _beam_search looks for a first end-of-sequence token where there is none
        except (ValueError, OverflowError, IndexError) as error:
            return Failed(InvalidRequest(str(error)))
        except RuntimeError as error:
            return Failed(EngineFailure(str(error)))

    @torch.inference_mode()
    def _generate(self, request: EngineRequest) -> tuple[GeneratedSequence, ...]:
        parameters = request.parameters
        prompt = torch.tensor([request.prompt_ids], device=self._model.device)
        criteria = StoppingCriteriaList()
        if parameters.stop_strings:
            criteria.append(StopStringCriteria(self._tokenizer, list(parameters.stop_strings)))
        structured = self._structured(request)
        with torch.random.fork_rng(), _minimum_of(structured):
            if parameters.seed is not None:
                torch.manual_seed(parameters.seed)
            output: Any = self._model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                stopping_criteria=criteria,
                logits_processor=LogitsProcessorList() if structured is None else LogitsProcessorList([structured]),
                custom_generate=_group_beam_search(parameters),
                return_dict_in_generate=True,
                output_scores=parameters.output_scores or structured is not None,
                # new tokens, not totals: these win over whatever the checkpoint's own generation config says
                min_new_tokens=max(0, request.min_length - len(request.prompt_ids)),
                max_new_tokens=request.max_length - len(request.prompt_ids),
                **self._arguments(parameters),
            )
        sequences = self._sequences(output, request)
        if structured is not None and not all(structured.has_answered(s.token_ids) for s in sequences):
            raise ValueError("nothing that is allowed is left")  # generate() goes on with any token, or breaks off
        if structured is not None and _has_empty_place(output, parameters):
            raise ValueError("some answers are missing")  # generate() gives unfinished beams in their place
        return sequences

    def _structured(self, request: EngineRequest) -> "BruteForceProcessor | None":
        if request.parameters.structured_output is None:
            return None
        from tests.oracle.brute_force import BruteForceProcessor  # needs llguidance

        return BruteForceProcessor(request, self._tokenizer, self._vocab_size)

    def _arguments(self, parameters: ResolvedParameters) -> dict[str, Any]:
        arguments = {name: value for name in FORWARDED if (value := getattr(parameters, name)) not in (None, ())}
        arguments["eos_token_id"] = list(parameters.eos_token_ids)
        if parameters.forced_eos_token_ids:
            arguments["forced_eos_token_id"] = list(parameters.forced_eos_token_ids)
        if parameters.sequence_bias:
            arguments["sequence_bias"] = [[list(ids), bias] for ids, bias in parameters.sequence_bias]
        if parameters.allowed_token_ids:
            arguments["prefix_allowed_tokens_fn"] = lambda *_: list(parameters.allowed_token_ids)
        if parameters.negative_prompt_ids:
            # generate() makes one row per beam or sequence of the prompt, but not of this one
            num_rows = max(parameters.num_beams, parameters.num_return_sequences)
            arguments["negative_prompt_ids"] = torch.tensor(
                [parameters.negative_prompt_ids] * num_rows, device=self._model.device
            )
        return arguments

    def _sequences(self, output: Any, request: EngineRequest) -> tuple[GeneratedSequence, ...]:
        scores = self._scores(output, request)
        sequences = []
        for row, ids in enumerate(output.sequences[:, len(request.prompt_ids) :].tolist()):
            ids, reason = _cut_at_end(ids, request)
            kept = None if scores is None else tuple(scores[row][: len(ids)])
            sequences.append(GeneratedSequence(tuple(ids), reason, kept))
        return tuple(sequences)

    def _scores(self, output: Any, request: EngineRequest) -> list[list[float]] | None:
        if not request.parameters.output_scores:
            return None
        rows: list[list[float]] = self._model.compute_transition_scores(
            output.sequences, output.scores, getattr(output, "beam_indices", None), normalize_logits=True
        ).tolist()
        return rows


def _minimum_of(structured: "BruteForceProcessor | None") -> AbstractContextManager[object]:
    """generate() has the minimum length of structured answers."""
    if structured is None:
        return nullcontext()
    from tests.oracle.brute_force import UnlessComplete

    def unless_complete(minimum: type[LogitsProcessor], *args: Any, **kwargs: Any) -> LogitsProcessor:
        return UnlessComplete(minimum(*args, **kwargs), structured)

    kinds = (MinLengthLogitsProcessor, MinNewTokensLengthLogitsProcessor)  # generate() makes both of min_new_tokens
    replaced: Any = {kind.__name__: partial(unless_complete, kind) for kind in kinds}
    patched: AbstractContextManager[object] = patch.multiple("transformers.generation.utils", **replaced)
    return patched


def _has_empty_place(output: Any, parameters: ResolvedParameters) -> bool:
    """Whether plain beam search found too few answers: a place without one keeps its first score.

    With length_penalty 0 a dead beam has the same score, so nothing can be said.
    """
    scores = getattr(output, "sequences_scores", None)
    is_plain = parameters.num_beam_groups == 1 and parameters.length_penalty != 0
    return is_plain and scores is not None and bool((scores == NO_SCORE).any())


def _group_beam_search(parameters: ResolvedParameters) -> GroupBeamSearch | None:
    if parameters.num_beam_groups == 1:
        return None
    return GroupBeamSearch(num_groups=parameters.num_beam_groups, diversity_penalty=parameters.diversity_penalty)


def _cut_at_end(ids: list[int], request: EngineRequest) -> tuple[list[int], FinishReason]:
    """The ids without the padding behind the end, and why they end.

    generate() pads the shorter rows of its output, often with an id that also ends an answer.
    """
    ends = set(request.parameters.eos_token_ids)
    first_end = next((i for i, token in enumerate(ids) if token in ends), None)
    if first_end is not None:
        return ids[: first_end + 1], "stop"
    reached_a_stop_string = (
        bool(request.parameters.stop_strings) and len(request.prompt_ids) + len(ids) < request.max_length
    )
    return ids, "stop" if reached_a_stop_string else "length"
