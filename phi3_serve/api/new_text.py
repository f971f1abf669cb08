"""What each event of an answer adds to its text, for streams that have one answer."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from phi3_serve.api.service import INCOMPLETE_ANSWER, Events
from phi3_serve.core.completion import TextToken
from phi3_serve.core.event import Delta, Done
from phi3_serve.errors import EngineFailure


@dataclass(frozen=True, slots=True)
class NewText:
    """The text and the tokens that ``event`` adds. Done adds what no delta has brought: with beams all."""

    event: Delta | Done
    text: str
    tokens: Sequence[TextToken]


async def new_texts(events: Events) -> AsyncGenerator[NewText, None]:
    """Each event with what it adds; the last one is Done. Closes ``events``.

    Raises:
        EngineFailure: the events end without Done.
    """
    num_characters, num_tokens = 0, 0
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Done):
                answer = event.completions[0]
                yield NewText(event, answer.text[num_characters:], answer.tokens[num_tokens:])
                return
            yield NewText(event, event.text, event.tokens)
            num_characters, num_tokens = num_characters + len(event.text), num_tokens + len(event.tokens)
    raise EngineFailure(INCOMPLETE_ANSWER)
