"""Which paths belong to which API, and so in which format their errors are written.

A further API adds its row here, its folder beside ``kaito`` and ``openai``, and its router in ``app``.
"""

from phi3_serve.api.anthropic.errors import ANTHROPIC
from phi3_serve.api.error_mapping import ErrorFormat
from phi3_serve.api.kaito.errors import KAITO
from phi3_serve.api.ollama.errors import OLLAMA
from phi3_serve.api.openai_errors import OPENAI

# The first pattern that matches decides. One that ends in "/" also covers every path below it.
# The launcher of HAProxy writes its rules from this table.
ERROR_FORMATS: tuple[tuple[str, ErrorFormat], ...] = (
    ("/api/", OLLAMA),
    ("/v1/messages", ANTHROPIC),
    ("/v1/messages/", ANTHROPIC),
    ("/v1/", OPENAI),
    ("/chat/completions", OPENAI),
    ("/completions", OPENAI),
    ("/embeddings", OPENAI),
    ("/models", OPENAI),
    ("/tokenize", OPENAI),
    ("/detokenize", OPENAI),
    ("/apply-template", OPENAI),
    ("/", KAITO),
)


def error_format_of(path: str) -> ErrorFormat:
    """The format of errors at ``path``, which begins with a slash and holds no route prefix of Ray Serve."""
    return next(errors for pattern, errors in ERROR_FORMATS if _matches(path, pattern))


def _matches(path: str, pattern: str) -> bool:
    return path == pattern or (pattern.endswith("/") and f"{path}/".startswith(pattern))
