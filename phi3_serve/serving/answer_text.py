"""The text of one answer, and what is requested of its tokens and of its prompt."""

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from phi3_serve.core.completion import Completion, LikelyToken, PromptText, TextToken
from phi3_serve.core.engine_event import EngineEvent, Finished, NewTokens, ScoredPrompt
from phi3_serve.core.engine_request import EngineRequest
from phi3_serve.core.event import Delta, Done
from phi3_serve.core.generated_sequence import GeneratedSequence, TokenLogprobs
from phi3_serve.core.generation_request import GenerationRequest
from phi3_serve.core.usage import Usage
from phi3_serve.prepare import warnings

if TYPE_CHECKING:
    from phi3_serve.text.detokenize import TextStream
    from phi3_serve.text.token_places import Place
    from phi3_serve.text.tokenizer import Phi3Tokenizer


class AnswerText:
    """The answer to one request, as pieces of a stream and as a whole."""

    def __init__(self, request: GenerationRequest, engine_request: EngineRequest, tokenizer: "Phi3Tokenizer") -> None:
        self._request = request
        self._parameters = engine_request.parameters
        self._prompt_ids = engine_request.prompt_ids
        self._engine_request = engine_request
        self._tokenizer = tokenizer
        self._before = tokenizer.before_answer(request.prompt, engine_request.prompt_ids)
        self._stream = self._new_stream()
        self._tokens = _StreamedTokens(tokenizer, self._before, engine_request) if request.shows_tokens else None
        self._num_tokens = 0  # streamed
        self._prompt_logprobs: Sequence[TokenLogprobs] = ()
        self._prompt: PromptText | None = None
        self._has_delta = False

    async def add(self, received: Sequence[EngineEvent], *, is_last: bool) -> Delta | None:
        """The next piece of the stream, if there is one."""
        token_ids: list[int] = []
        for event in received:
            if isinstance(event, ScoredPrompt):
                self._prompt_logprobs = event.logprobs
            elif isinstance(event, NewTokens):
                token_ids += event.token_ids
                if self._tokens is not None:
                    self._tokens.add(event)
        self._num_tokens += len(token_ids)
        text = self._stream.add(token_ids) + (self._stream.finish() if is_last else "")
        tokens = () if self._tokens is None else self._tokens.take(len(text), is_last=is_last)
        if not text and not tokens:
            return None
        delta = Delta(text, tokens)
        if self._shows_prompt and not self._has_delta:
            delta = replace(delta, prompt=await self._prompt_text())
        if self._request.shows_usage:
            delta = replace(delta, usage=Usage(len(self._prompt_ids), self._num_tokens))
        self._has_delta = True
        return delta

    async def done(self, finished: Finished) -> Done:
        """The whole answer."""
        usage = Usage(
            prompt_tokens=len(self._prompt_ids),
            completion_tokens=sum(len(s.token_ids) for s in finished.sequences),
        )
        completions = tuple(self._completion(sequence) for sequence in finished.sequences)
        prompt = await self._prompt_text() if self._shows_prompt else None
        return Done(completions, usage, warnings(self._engine_request), prompt, finished.timings)

    def _completion(self, sequence: GeneratedSequence) -> Completion:
        stream = self._new_stream()
        text = stream.add(sequence.token_ids) + stream.finish()
        if not self._request.shows_tokens:
            return Completion(text, sequence, stop_string=stream.stop_string)
        places = self._tokenizer.places(self._before, self._parameters)
        places.add(sequence.token_ids)
        places.finish()
        in_text = places.take(len(text))
        beyond = places.take_all()
        logprobs = sequence.logprobs or [None] * len(sequence.token_ids)
        traceless = self._tokenizer.traceless_ids(self._parameters)
        has_trace = [place.token_id not in traceless for place in in_text] + [False] * len(beyond)
        tokens = [
            _text_token(self._tokenizer, place, of_token, in_text=shows)
            for place, of_token, shows in zip((*in_text, *beyond), logprobs, has_trace, strict=True)
        ]
        return Completion(text, sequence, tuple(tokens), stream.stop_string)

    @property
    def _shows_prompt(self) -> bool:
        return self._request.shows_prompt or self._parameters.prompt_logprobs is not None

    async def _prompt_text(self) -> PromptText:
        """A prompt of 100,000 tokens takes half a second, so this does not run on the event loop."""
        if self._prompt is None:
            self._prompt = await asyncio.to_thread(self._read_prompt)
        return self._prompt

    def _read_prompt(self) -> PromptText:
        text, places = self._tokenizer.prompt_places(self._request.prompt, self._prompt_ids)
        logprobs: Iterable[TokenLogprobs | None] = [None] * len(places)
        if self._prompt_logprobs:
            logprobs = (None, *self._prompt_logprobs)
        pairs = zip(places, logprobs, strict=True)
        return PromptText(text, tuple(_text_token(self._tokenizer, *pair) for pair in pairs))

    def _new_stream(self) -> "TextStream":
        clean_up = self._request.clean_up_tokenization_spaces
        return self._tokenizer.stream(self._before, self._parameters, clean_up=clean_up)


class _StreamedTokens:
    """The tokens of an answer as their text leaves."""

    def __init__(self, tokenizer: "Phi3Tokenizer", before: Sequence[int], engine_request: EngineRequest) -> None:
        self._tokenizer = tokenizer
        self._places = tokenizer.places(before, engine_request.parameters)
        self._traceless_ids = tokenizer.traceless_ids(engine_request.parameters)
        self._logprobs: deque[TokenLogprobs | None] = deque()  # of the tokens whose text has not left
        self._num_chars = 0

    def add(self, new: NewTokens) -> None:
        """Append tokens."""
        self._places.add(new.token_ids)
        self._logprobs += new.logprobs or [None] * len(new.token_ids)

    def take(self, num_chars: int, *, is_last: bool) -> tuple[TextToken, ...]:
        """The tokens of the next ``num_chars`` characters, which leave now."""
        if is_last:
            self._places.finish()
        self._num_chars += num_chars
        return tuple(
            _text_token(
                self._tokenizer, place, self._logprobs.popleft(), in_text=place.token_id not in self._traceless_ids
            )
            for place in self._places.take(self._num_chars)
        )


def _text_token(
    tokenizer: "Phi3Tokenizer", place: "Place", logprobs: TokenLogprobs | None, *, in_text: bool = True
) -> TextToken:
    if logprobs is None:
        return TextToken(place.token_id, place.piece, place.start, in_text)
    likeliest = tuple(LikelyToken(i, tokenizer.piece(i), logprob) for i, logprob in logprobs.likeliest)
    return TextToken(place.token_id, place.piece, place.start, in_text, logprobs.chosen, likeliest, logprobs.rank)
