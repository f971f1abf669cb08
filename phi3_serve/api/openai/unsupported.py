"""Fields of OpenAI's API that this server does not honour.

Source: the API reference as the ``openai`` SDK 3.57 types it. Every field of it that the schema lacks is here.
"""

from collections.abc import Iterable, Mapping

from phi3_serve.errors import InvalidRequest, did_you_mean
from phi3_serve.parameters import NAMES

_TOOLS = "tools are not offered: Phi-3 was not trained to call any"
_TEXT_ONLY = "the model reads and writes text only"
_PLATFORM = "it belongs to OpenAI's platform; this server stores nothing and looks nothing up"
# Field → the reason of the refusal, and the values that pass because they ask for nothing. A null always passes.
REFUSED: Mapping[str, tuple[str, tuple[object, ...]]] = {
    "tools": (_TOOLS, ([],)),
    "tool_choice": (_TOOLS, ("none", "auto")),
    "parallel_tool_calls": (_TOOLS, (True, False)),
    "functions": (_TOOLS, ([],)),
    "function_call": (_TOOLS, ("none", "auto")),
    "response_format": ("answers in a given format are not offered", ({"type": "text"},)),
    "modalities": (_TEXT_ONLY, (["text"],)),
    "audio": (_TEXT_ONLY, ()),
    "prediction": (
        "predicted outputs are not offered; prompt_lookup_num_tokens of generate_kwargs has a similar effect",
        (),
    ),
    "reasoning_effort": ("Phi-3 has no separate reasoning", ("none",)),
    "verbosity": ("the model has no such setting; ask for a short answer in the system prompt", ("medium",)),
    "web_search_options": (_PLATFORM, ()),
    "store": (_PLATFORM, (False,)),
    "service_tier": (_PLATFORM, ("auto", "default")),
    "moderation": (_PLATFORM, ()),
    "suffix": ("Phi-3 continues a text and cannot fill a gap", ("",)),
    "best_of": ("the server does not pick the best answer; n returns all of them", (1,)),
}
# The type of a part of a message → what it is. The model has no use for any of them.
MEDIA: Mapping[str, str] = {
    "image_url": "Pictures",
    "input_image": "Pictures",
    "input_audio": "Sound recordings",
    "audio_url": "Sound recordings",
    "video_url": "Videos",
    "file": "Files",
    "input_file": "Files",
}
# Records of the caller. They change no answer, at OpenAI neither.
IGNORED = ("user", "metadata", "safety_identifier", "prompt_cache_retention", "prompt_cache_options")


def refuse_unsupported(body: Mapping[str, object], fields: Iterable[str]) -> None:
    """Check the names in ``body``; ``fields`` are those of the schema.

    Raises:
        InvalidRequest: a field is refused, belongs into generate_kwargs, or does not exist.
    """
    for name, value in body.items():
        if value is not None and name not in fields and name not in IGNORED:
            _refuse(str(name), value, fields)


def _refuse(name: str, value: object, fields: Iterable[str]) -> None:
    if name in REFUSED:
        reason, without_effect = REFUSED[name]
        if not any(value == v and type(value) is type(v) for v in without_effect):
            raise InvalidRequest(f"`{name}` is not accepted: {reason}.", name)
    elif name in NAMES:
        raise InvalidRequest(f"`{name}` is a generate parameter: put it into `generate_kwargs`.", name)
    else:
        hint = did_you_mean(name, [*fields, *REFUSED])
        raise InvalidRequest(f"`{name[:64]}` is not a field{hint}", name[:64])
