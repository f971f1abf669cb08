"""A text as token ids, or token ids as text, with the tokenizer of a loaded model."""

from phi3_serve.core.prompt import TokenPrompt
from phi3_serve.core.tokenization import Tokenization, TokenizationRequest
from phi3_serve.errors import InvalidRequest
from phi3_serve.serving.model_loading import RunningModel
from phi3_serve.text import token_limit


def tokenized(model: RunningModel, request: TokenizationRequest) -> Tokenization:
    """What the tokenizer of ``model`` makes of ``request``.

    Raises:
        InvalidRequest: a token id is not in the vocabulary, or the chat template does not take a conversation.
        PromptTooLong: a text has more tokens than are encoded.
    """
    if isinstance(request.prompt, TokenPrompt):
        _check_vocabulary(request.prompt, model.loaded.vocab_size)
    text, token_ids = model.tokenizer.tokenize(request, limit=token_limit.of_encoding(model.loaded.context_length))
    return Tokenization(
        text=text,
        token_ids=tuple(token_ids),
        tokens=tuple(model.tokenizer.tokens(token_ids)) if request.with_tokens else (),
        context_length=model.loaded.context_length,
    )


def _check_vocabulary(prompt: TokenPrompt, vocab_size: int) -> None:
    unknown = next((i for i in prompt.token_ids if not 0 <= i < vocab_size), None)
    if unknown is not None:
        raise InvalidRequest(
            f"`prompt` holds token id {unknown}; this model's ids go from 0 to {vocab_size - 1}.", "prompt"
        )
