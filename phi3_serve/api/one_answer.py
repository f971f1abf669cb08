"""APIs whose answer is one text, without anything about its tokens."""

from collections.abc import Mapping

from phi3_serve.errors import InvalidRequest
from phi3_serve.parameters import GenerationParameters

_DETAILS = ("output_scores", "return_dict_in_generate")


def refuse_more_than_one_text(
    parameters: GenerationParameters, names_sent: Mapping[str, str], *, has_logprobs: bool = False
) -> None:
    """Raise InvalidRequest if ``parameters`` ask for several answers, or for what the API does not return."""
    if parameters.num_return_sequences not in (None, 1):
        name = names_sent.get("num_return_sequences", "num_return_sequences")
        raise InvalidRequest(f"`{name}` must be 1: an answer of this API is one text.", name)
    for parameter in _DETAILS if has_logprobs else (*_DETAILS, "top_logprobs"):
        if getattr(parameters, parameter) not in (None, False):
            name = names_sent.get(parameter, parameter)
            raise InvalidRequest(f"`{name}` is not accepted: the answers of this API have no scores.", name)
