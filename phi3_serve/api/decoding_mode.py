"""Whether an answer is sampled or searched for, in APIs that sample unless the temperature is 0."""

from dataclasses import replace

from phi3_serve.api.other_names import WHOLE_CONTEXT
from phi3_serve.parameters import GenerationParameters

SAMPLED = GenerationParameters(do_sample=True, temperature=1.0, top_p=1.0, top_k=0, max_length=WHOLE_CONTEXT)
"""OpenAI and Anthropic document temperature 1 and no cut-off. Those of transformers are greedy search and top_k 50."""


def with_decoding_mode(given: GenerationParameters) -> GenerationParameters:
    """``given`` with ``do_sample`` false if it has beams or a temperature of 0, unless ``do_sample`` is given.

    ``generate`` refuses a temperature of 0, which means the likeliest token here.
    """
    is_greedy = given.temperature == 0
    if is_greedy:
        given = replace(given, temperature=None)
    if (is_greedy or given.asks_for_beams) and given.do_sample is None:
        return replace(given, do_sample=False)
    return given
