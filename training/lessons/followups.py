"""Conversations of several turns: the next question uses a result, a topic or a name from before."""

from collections.abc import Callable

from training.dialogue import Dialogue, Draw, Exchange, dialogue, letters
from training.lessons import arithmetic, conversation, words, world
from training.lessons.facts import CAPITALS, CATEGORIES, COLOURS, DEFINITIONS, NO_ARTICLE
from training.lessons.vocabulary import NAMES, any_word, with_article

_AND_OF = (
    "[And|And what is the capital|What about|And the capital|How about|Now] of {x}?",
    "And {x}?",
    "[What about|How about] {x}?",
    "And [for |]{x}?",
    "[The same for|Now] {x}[?|.|]",
    "{x}?",
)
_PLUS = (
    "[Add|Now add|And add] {b} [to that|to it|].",
    "[And |]plus {b}?",
    "[And|What] if [you|I] add {b}[ to that|]?",
    "[And|Now] [plus|+] {b}[?|.|]",
    "+ {b}",
)
_MINUS = (
    "[Subtract|Now subtract|Take|Now take] {b} [from that|from it].",
    "[And |]minus {b}?",
    "[And|Now] [minus|-] {b}[?|.|]",
    "[And|What] if [you|I] subtract {b}?",
    "- {b}",
)
_MY_NAME = (
    "[My name is|I am|I'm|Call me|They call me] {n}[.|!|]",
    "[Hi|Hello|Hey][,|!] [my name is|I am|I'm] {n}[.|!|]",
    "[Hi|Hello], {n} here.",
    "You can call me {n}.",
    "Call me {n}.",
)
_WHO_AM_I = (
    "[What is|What's|Whats] my name?",
    "[Who am I|Do you know my name|Do you remember my name|Tell me my name|Can you tell me my name|Say my name|What did I say my name was][?|]",
    "[What was|Do you still know|Remember] my name[ again|]?",
)
_I_LIKE = (
    "[My favourite|The colour I like best, my favourite,] {sort} is {x}.",
    "My favorite {sort} is {x}.",
    "I like the {sort} {x}[ best|].",
    "The {sort} that I like [best|most] is {x}.",
)
_WHAT_DO_I_LIKE = (
    "What [is|was] my [favourite|favorite] {sort}?",
    "[Which|What] {sort} do I like?",
    "[Do you remember|Tell me|Do you know] my [favourite|favorite] {sort}[?|]",
    "What do I like[ best|]?",
)
_AGAIN = (
    "Again?",
    "Repeat that.",
    "Say that again.",
    "[Again|Once more|Repeat that|Say that again|Can you repeat that|Please repeat|What did you say|Pardon|Sorry, what|Come again][?|.|!|]",
    "[Can you|Could you|Would you|Will you|Please] say that [again|once more|one more time]?",
    "I did not [hear|get|catch] that.",
)
# Without alternatives, so all are on both sides of the split: there are too few wordings to hold some out.
_BACKWARDS = (
    "Backwards?",
    "And backwards?",
    "Now backwards.",
    "And in reverse?",
    "Reverse it.",
    "And reverse it.",
    "Now reverse it.",
    "Can you reverse it?",
    "Could you reverse it?",
    "Now the other way round.",
    "And the other way round?",
    "Turn it around.",
    "Now turn it around.",
    "Can you turn it around?",
    "Say it backwards.",
    "Can you say it backwards?",
    "Spell it backwards.",
    "Now spell it backwards.",
    "Can you spell it backwards?",
    "Could you spell it backwards?",
    "What is it backwards?",
    "And what is it backwards?",
    "What is it in reverse?",
    "And what is it reversed?",
)
_AND_DEFINE = (
    "And {x}?",
    "What about {x}?",
    "How about {x}?",
    "And [what is |]{x}?",
    "[And now|Now] [what is|what about] {x}?",
)
_AND_COLOUR = (
    "And {x}?",
    "What about {x}?",
    "How about {x}?",
    "And [the colour of |the color of |]{x}?",
    "[And now|Now] [what about|how about] {x}?",
)


def follow_up(draw: Draw) -> Dialogue:
    """A conversation of two or three turns."""
    return draw.some(
        (
            _sum_goes_on,
            _sum_goes_on,
            _capital_goes_on,
            _capital_goes_on,
            _name,
            _name,
            _liking,
            _again,
            _backwards,
            _backwards,
            _definition_goes_on,
            _colour_goes_on,
            _many_topics,
            _many_topics,
        )
    )(draw)


def _sum_goes_on(draw: Draw) -> Dialogue:
    _, a, b, c = draw.fresh(lambda rng: ("and", rng.randint(1, 60), rng.randint(1, 30), rng.randint(1, 9)))
    first = Exchange(draw.wording(arithmetic.ADD[:5], a=a, b=b), f"{a} + {b} = {a + b}.")
    total = a + b
    plus = draw.chance(0.6)
    answer = f"{total} + {c} = {total + c}." if plus else arithmetic.difference(total, c)
    return dialogue(first, Exchange(draw.wording(_PLUS if plus else _MINUS, b=c), answer))


def _capital_goes_on(draw: Draw) -> Dialogue:
    country, *others = draw.rng.sample(list(CAPITALS), draw.some((2, 2, 3)))
    first = Exchange(draw.wording(world.CAPITAL, x=country), f"The capital of {country} is {CAPITALS[country]}.")
    more = [Exchange(draw.wording(_AND_OF, x=c), f"The capital of {c} is {CAPITALS[c]}.") for c in others]
    return dialogue(first, *more)


def _name(draw: Draw) -> Dialogue:
    name = draw.some(NAMES)
    told = Exchange(draw.wording(_MY_NAME, n=name), f"Nice to meet you, {name}! How can I help you?")
    if draw.chance(0.25):
        return dialogue(told)
    asked = Exchange(draw.wording(_WHO_AM_I), f"Your name is {name}.")
    between = [_plain_exchange(draw)] if draw.chance(0.5) else []
    return dialogue(told, *between, asked)


def _liking(draw: Draw) -> Dialogue:
    category = draw.some(
        [c for c in CATEGORIES if c.singular in ("colour", "animal", "fruit", "sport", "drink", "season")]
    )
    item = draw.some(category.items)
    sort = "color" if category.singular == "colour" and draw.chance(0.4) else category.singular
    told = Exchange(
        draw.wording(
            _I_LIKE,
            sort=sort,
            x=item,
        ),
        "I will remember that.",
    )
    answer = f"Your favourite {category.singular} is {item}."
    asked = Exchange(draw.wording(_WHAT_DO_I_LIKE, sort=sort), answer)
    between = [_plain_exchange(draw)] if draw.chance(0.3) else []
    return dialogue(told, *between, asked)


def _again(draw: Draw) -> Dialogue:
    first = _plain_exchange(draw)
    return dialogue(first, Exchange(draw.wording(_AGAIN), first.answer))


def _backwards(draw: Draw) -> Dialogue:
    _, word = draw.fresh(lambda rng: ("and backwards", any_word(rng)))
    first = Exchange(draw.wording(words.SPELL, w=word), words.spelling_answer(word))
    # The answer spells the word again: letters copied from the previous turn continued after the last one.
    backwards = word[::-1]
    answer = f"{first.answer} Backwards it is {letters(words.spelled(backwards))}: {letters(backwards)}"
    return dialogue(first, Exchange(draw.wording(_BACKWARDS), answer))


def _definition_goes_on(draw: Draw) -> Dialogue:
    first, second = draw.rng.sample([w for w in DEFINITIONS if len(w) > 2], 2)
    named = [w if w in NO_ARTICLE else with_article(w) for w in (first, second)]
    return dialogue(
        Exchange(draw.wording(world.DEFINE[:6], x=named[0]), DEFINITIONS[first]),
        Exchange(draw.wording(_AND_DEFINE, x=named[1]), DEFINITIONS[second]),
    )


def _colour_goes_on(draw: Draw) -> Dialogue:
    first, second = draw.rng.sample([c for c in COLOURS if c[1] == "is"], 2)
    told = [f"{t[:1].upper()}{t[1:]} {verb} {colour}." for t, verb, colour in (first, second)]
    return dialogue(
        Exchange(draw.wording(world.COLOUR[:3], x=first[0], verb="is"), told[0]),
        Exchange(draw.wording(_AND_COLOUR, x=second[0]), told[1]),
    )


def _many_topics(draw: Draw) -> Dialogue:
    """Unrelated questions: an answer does not depend on the turns before."""
    count = draw.some((2, 2, 3, 4, 6, 9))
    return dialogue(*[_plain_exchange(draw) for _ in range(count)])


def _plain_exchange(draw: Draw) -> Exchange:
    lessons: tuple[Callable[[Draw], Exchange], ...] = (
        arithmetic.addition,
        arithmetic.subtraction,
        arithmetic.multiplication,
        world.capitals,
        world.colours,
        world.calendar,
        world.definitions,
        world.facts,
        words.opposites,
        words.spelling,
        world.yes_or_no,
        world.lists,
        *(() if draw.exam else (conversation.small_talk, conversation.refusal)),  # these have several right answers
    )
    return draw.some(lessons)(draw)
