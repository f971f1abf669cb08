"""Fields of a body that this server does not honour: OpenAI's and those of other servers, for every API.

Sources: OpenAI's API reference as the ``openai`` SDK 3.57 types it, of which every field that the schema lacks is here;
vLLM at 002032ee (vllm/entrypoints/openai), SGLang at 004c82e0 (srt/entrypoints/openai/protocol.py), llama.cpp at
00dc8057 (tools/server/README.md), ollama at fb307609 (docs/api).
"""

from collections.abc import Collection, Iterable, Mapping

from phi3_serve import refused_parameters
from phi3_serve.api.given_parameters import is_name
from phi3_serve.api.other_names import OTHER_NAMES
from phi3_serve.errors import InvalidRequest, did_you_mean
from phi3_serve.parameters import NAMES
from phi3_serve.refused_parameters import NEVER, is_one_of

_TOOLS = "tools are offered by /v1/chat/completions, /v1/responses, /v1/messages and /api/chat"
_OWN_TOOLS = "the server runs no tools itself"
_TEXT_ONLY = "the model reads and writes text only"
_PLATFORM = "it belongs to OpenAI's platform; this server stores nothing and looks nothing up"
_REASONING = "Phi-3 has no separate reasoning"
_CODE = "it would run code that the request brings"
_OTHER_SAMPLER = "this sampler is not offered; the parameters of generate_kwargs are"
_ADAPTERS = "send adapters, a list of objects with name and strength"
_INTERNALS = "the model's internals are not returned"
_PLACEMENT = "it sets where the server computes, not what it answers"
_TOO_LONG = "a prompt that is too long is refused, not shifted"
_IDS = "the ids of the tokens are not returned; return_dict_in_generate of /chat returns them"

# Field → the reason of the refusal, and the values that pass because they ask for nothing. A null always passes.
REFUSED: Mapping[str, tuple[str, tuple[object, ...]]] = {
    # OpenAI
    "tools": (_TOOLS, ([],)),
    "tool_choice": (_TOOLS, ("none", "auto")),
    "parallel_tool_calls": (_TOOLS, (True, False)),
    "functions": (_TOOLS, ([],)),
    "function_call": (_TOOLS, ("none", "auto")),
    "modalities": (_TEXT_ONLY, (["text"],)),
    "audio": (_TEXT_ONLY, ()),
    "prediction": (
        "predicted outputs are not offered; prompt_lookup_num_tokens has a similar effect",
        (),
    ),
    "reasoning_effort": (_REASONING, ("none",)),
    "verbosity": ("the model has no such setting; ask for a short answer in the system prompt", ("medium",)),
    "web_search_options": (_PLATFORM, ()),
    "store": (_PLATFORM, (False,)),
    "service_tier": (_PLATFORM, ("auto", "default")),
    "moderation": (_PLATFORM, ()),
    "suffix": ("Phi-3 continues a text and cannot fill a gap", ("",)),
    "best_of": ("the best answer is picked by OpenAI's completions alone; num_return_sequences returns all", (1,)),
    # OpenAI's responses
    "background": ("an answer is computed while its client waits", (False,)),
    "background_options": ("an answer is computed while its client waits", ()),
    "conversation": (_PLATFORM, ()),
    "previous_response_id": (_PLATFORM, ()),
    "access_programs": (_PLATFORM, ()),
    "image": (_TEXT_ONLY, ()),
    "personality": ("the model has no such setting; describe it in the system prompt", ()),
    "reasoning": (_REASONING, ({}, {"effort": None}, {"effort": "none"}, {"effort": None, "summary": None})),
    "truncation": (_TOO_LONG, ("disabled",)),
    # Anthropic
    "thinking": (_REASONING, ({"type": "disabled"}, {"type": "adaptive"})),
    "output_config": ("send json_schema", ({},)),
    "output_format": ("send json_schema", ()),
    "container": (_CODE, ()),
    "mcp_servers": (_OWN_TOOLS, ([],)),
    "context_management": (_PLATFORM, ()),
    "thread": ("this server stores no conversations; send all messages", ()),
    "diagnostics": (_PLATFORM, ()),
    "inference_geo": (_PLACEMENT, ()),
    "speed": ("all requests run at the same speed", ("standard",)),
    "user_profile_id": (_PLATFORM, ()),
    "workspace_id": (_PLATFORM, ()),
    # vLLM and SGLang
    "logits_processors": (_CODE, ([],)),
    "custom_logit_processor": (_CODE, ()),
    "custom_params": (_CODE, ({},)),
    "vllm_xargs": (_CODE, ({},)),
    "prompt_logprob_token_ids": ("prompt_logprobs returns the likeliest tokens, and no others", ()),
    "logprob_token_ids": ("top_logprobs returns the likeliest tokens, and no others", ()),
    "guided_whitespace_pattern": ("JSON has a space, or a new line and its indentation, between its tokens", ()),
    "chat_template": ("the template of the checkpoint applies", ()),
    "chat_template_kwargs": ("the chat template gets no settings", ({},)),
    "add_generation_prompt": ("/v1/chat/completions alone offers it", (True,)),
    "continue_final_message": ("/v1/chat/completions alone offers it", (False,)),
    "documents": ("the chat template gets no documents", ([],)),
    "mm_processor_kwargs": (_TEXT_ONLY, ({},)),
    "media_io_kwargs": (_TEXT_ONLY, ({},)),
    "prompt_embeds": (_TEXT_ONLY, ()),
    "priority": ("requests run in the order of their arrival", (0,)),
    "cache_salt": ("all requests to a model share its prefix cache", ()),
    "kv_transfer_params": (_PLACEMENT, ({},)),
    "ec_transfer_params": (_PLACEMENT, ({},)),
    "return_token_ids": (_IDS, (False,)),
    "return_tokens_as_token_ids": (_IDS, (False,)),
    "return_hidden_states": (_INTERNALS, (False,)),
    "return_routed_experts": (_INTERNALS, (False,)),
    "routed_experts_prompt_start": (_INTERNALS, (0,)),
    "return_token_offsets": ("/v1/completions with echo and logprobs returns the offsets of tokens", (False,)),
    "return_mm_kwargs": (_TEXT_ONLY, (True,)),
    "return_prompt_text": ("the text of the prompt is not returned; /v1/completions has echo", (False,)),
    "watermarking": ("watermarking is not offered", (False,)),
    "repetition_detection": ("no_repeat_ngram_size and repetition_penalty prevent repetition", ({},)),
    "thinking_token_budget": (_REASONING, (-1,)),
    "stream_interval": ("the server decides how many tokens a chunk of a stream has", (1,)),
    "stop_regex": ("a pattern cannot end an answer; stop takes strings", ()),
    "lora_path": (_ADAPTERS, ()),
    "session_params": (_PLATFORM, ({},)),
    # llama.cpp and ollama
    "lora": (_ADAPTERS, ([],)),
    "mirostat": (_OTHER_SAMPLER, (0,)),
    "tfs_z": (_OTHER_SAMPLER, (1, 1.0)),
    "dynatemp_range": (_OTHER_SAMPLER, (0, 0.0)),
    "xtc_probability": (_OTHER_SAMPLER, (0, 0.0)),
    "dry_multiplier": (_OTHER_SAMPLER, (0, 0.0)),
    "top_n_sigma": (_OTHER_SAMPLER, (-1, -1.0)),
    "samplers": ("the samplers run in the order of transformers", ()),
    "min_keep": ("a cut-off keeps one token, or more with beams", (0, 1)),
    "n_probs": ("send logprobs", (0,)),
    "n_keep": (_TOO_LONG, (0,)),
    "num_keep": (_TOO_LONG, (0,)),
    "truncate": (_TOO_LONG, (False,)),
    "shift": (_TOO_LONG, (False,)),
    "penalize_newline": ("repetition_penalty counts every token", (True,)),
    "vocab_only": (_PLACEMENT, (False,)),
    "embedding_only": (_PLACEMENT, (False,)),
    "n_indent": ("indentation is not controlled", (0,)),
    "t_max_predict_ms": ("send max_time, in seconds", (0, -1)),
    "id_slot": (_PLACEMENT, (-1,)),
    "options": ("ollama's options are fields of the body here", ({},)),
    "keep_alive": ("the config of the server decides when a model sleeps", ()),
    "think": (_REASONING, (False,)),
    "timings_per_token": ("chunks have no timings", (False,)),
    "return_tokens": (_IDS, (False,)),
    "return_progress": ("a stream shows no progress of the prompt", (False,)),
    "post_sampling_probs": ("log-probabilities are those of the model", (False,)),
}
# Records of the caller, and what changes no answer.
IGNORED = frozenset(
    {
        "user",
        "metadata",
        "safety_identifier",
        "prompt_cache_retention",
        "prompt_cache_options",
        "max_tool_calls",
        # vLLM and SGLang
        "session_id",
        "request_id",
        "rid",
        "guided_decoding_backend",  # which library compiles
        "include_reasoning",
        "separate_reasoning",
        "stream_reasoning",
        # llama.cpp: the cache changes no answer, and the others only set what a refused field turns on
        "cache_prompt",
        "mirostat_tau",
        "mirostat_eta",
        "dynatemp_exponent",
        "xtc_threshold",
        "dry_base",
        "dry_allowed_length",
        "dry_penalty_last_n",
        "dry_sequence_breakers",
        # ollama: how a model is loaded, which the config of the server decides and which changes no answer
        "numa",
        "num_batch",
        "num_gpu",
        "main_gpu",
        "low_vram",
        "f16_kv",
        "logits_all",
        "use_mmap",
        "use_mlock",
        "num_thread",
    }
)


MAX_UNKNOWN_FIELDS = 32  # each is compared with all known names
# A name this close to a known one is a typing error. At 0.6, where a hint begins, `version` is close to `verbosity`.
TYPING_ERROR = 0.8


def unknown_fields(body: Mapping[str, object], own_fields: Collection[str]) -> list[str]:
    """The fields of ``body`` that no server has. ``own_fields`` are those of the schema. A null always passes.

    Raises:
        InvalidRequest: a field is refused, its name is a typing error, or there are too many.
    """
    unknown = []
    for name, value in body.items():
        if value is None or name in own_fields or name in IGNORED or is_name(name):
            continue
        if (reason := _reason(name, value)) is not None:
            raise InvalidRequest(f"`{name}` is not accepted: {reason}.", name)
        if name not in _REASONS:
            _refuse_typing_error(name, own_fields)
            unknown.append(name)
            if len(unknown) > MAX_UNKNOWN_FIELDS:
                raise InvalidRequest(
                    f"The body has more than {MAX_UNKNOWN_FIELDS} fields that nothing knows, such as `{name[:64]}`.",
                    name[:64],
                )
    return unknown


def refuse_all_but(body: Mapping[str, object], own_fields: Collection[str]) -> None:
    """Raise InvalidRequest if ``body`` has a field beside ``own_fields``, although nothing is generated. Nulls pass."""
    for name, value in body.items():
        if value is None or name in own_fields or name in IGNORED:
            continue
        if is_name(name):
            raise InvalidRequest(f"`{name}` is not accepted: nothing is generated here.", name)
        if (reason := _reason(name, value)) is not None:
            raise InvalidRequest(f"`{name}` is not accepted: {reason}.", name)
        if name not in _REASONS:
            raise InvalidRequest(f"`{name[:64]}` is not a field{did_you_mean(name, own_fields)}", name[:64])


def not_a_field(name: str, own_fields: Iterable[str]) -> InvalidRequest:
    """The error for a field that nothing knows, with the nearest name."""
    hint = did_you_mean(name, [*own_fields, *NAMES, *OTHER_NAMES, *_REASONS])
    return InvalidRequest(f"`{name[:64]}` is not a field{hint}", name[:64])


_REASONS = {**refused_parameters.REFUSED, **REFUSED, **{name: (reason, ()) for name, reason in NEVER.items()}}


def _reason(name: str, value: object) -> str | None:
    """Why ``value`` is refused; None if it is not."""
    reason, without_effect = _REASONS.get(name, ("", ()))
    return reason if reason and not is_one_of(value, without_effect) else None


def _refuse_typing_error(name: str, own_fields: Iterable[str]) -> None:
    if hint := did_you_mean(name, [*own_fields, *NAMES, *OTHER_NAMES], "", cutoff=TYPING_ERROR):
        raise InvalidRequest(f"`{name[:64]}` is not a field{hint}", name[:64])
