"""Common knowledge: capitals, calendar, colours, units, definitions, categories, yes-or-no questions."""

import re

from training.dialogue import Draw, Exchange
from training.lessons.arithmetic import NUMBER_WORDS
from training.lessons.facts import (
    ABILITIES,
    ANY_COLOUR,
    CAPITALS,
    CATEGORIES,
    COLOURS,
    DEFINITIONS,
    FACTS,
    MIXTURES,
    NO_ARTICLE,
    PROPERTIES,
    SOUNDS,
    UNITS,
    Category,
)
from training.lessons.vocabulary import with_article

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
MONTH_LENGTHS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split()
_SEASONS = (
    "winter",
    "winter",
    "spring",
    "spring",
    "spring",
    "summer",
    "summer",
    "summer",
    "autumn",
    "autumn",
    "autumn",
    "winter",
)

CAPITAL = (
    "What is the capital of {x}?",
    "What's the capital of {x}?",
    "[What is|What's|Whats] the capital [city |]of {x}?",
    "[Tell me|Name|Give me|Do you know|Can you tell me] the capital [city |]of {x}.",
    "[Which|What] city is the capital of {x}?",
    "[Capital|The capital] of {x}?",
    "{x}'s capital?",
    "What is {x}'s capital[ city|]?",
    "What [is|would be] the capital of the country {x}?",
)
_COUNTRY = (
    "[Which|What] country is {y} the capital of?",
    "Of [which|what] country is {y} the [capital|capital city]?",
    "{y} is the capital of [which|what] country?",
    "[Which|What] country has {y} as [its|the] capital?",
    "[Which|What] country's capital is {y}?",
)
_IS_CAPITAL = (
    "Is {y} the capital of {x}?",
    "Is {y} the capital [city |]of {x}?",
    "[Is it true|Do you think] that {y} is the capital [city |]of {x}?",
    "[True or false|Yes or no]: {y} is the capital [city |]of {x}.",
    "{y} is the capital [city |]of {x}, [right|isn't it|correct]?",
)
_NEXT = (
    "[What|Which] {unit} [comes |is ]after {x}?",
    "[What is|What's|Which is] the {unit} after {x}?",
    "[What|Which] {unit} [follows|comes next after] {x}?",
    "[Tell me|Name] the {unit} [after|that follows] {x}.",
    "What comes after {x}?",
    "What [comes|is|follows] [right |just |]after {x}?",
)
_PREVIOUS = (
    "[What|Which] {unit} [comes |is ]before {x}?",
    "[What is|What's|Which is] the {unit} before {x}?",
    "[What|Which] {unit} [precedes|comes right before] {x}?",
    "[Tell me|Name] the {unit} before {x}.",
    "What comes before {x}?",
    "What [comes|is|was] [right |just |]before {x}?",
)
_TODAY_TOMORROW = (
    "If today is {x}, what [day |]is tomorrow?",
    "[Today is|Today it is] {x}. What [day |]is [it |]tomorrow?",
    "Which day is tomorrow if [today is|it is] {x}[| today]?",
)
_TODAY_YESTERDAY = (
    "If today is {x}, what [day |]was yesterday?",
    "[Today is|Today it is] {x}. What [day |]was [it |]yesterday?",
    "Which day was yesterday if [today is|it is] {x}[| today]?",
)
_NTH_MONTH = (
    "[What|Which] is the {n} month[| of the year]?",
    "[What|Which] month is the {n}[| one]?",
    "[Name|Tell me] the {n} month[| of the year].",
    "[What|Which] month is number {number}?",
)
_MONTH_DAYS = (
    "How many days [are there|are] in [the month of |]{x}?",
    "How many days does [the month of |]{x} have?",
    "[Tell me|Give me] the number of days in {x}.",
    "How long is [the month of |]{x}?",
)
_MONTH_SEASON = (
    "[What|Which] season is {x} in?",
    "In [what|which] season is {x}?",
    "[What|Which] season is it in {x}?",
    "{x} is in which season?",
)
_ALL = (
    "[List|Name|Tell me|Give me|What are|Say|Write|Do you know] [all |]the {what}.",
    "[Can you list|Can you name|Could you list|Please list] [all |]the {what}?",
    "[What are|Which are] the {what}?",
)
COLOUR = (
    "What colour {verb} {x}?",
    "What color {verb} {x}?",
    "[What|Which] [colour|color] {verb} {x}?",
    "[What is|What's|Do you know] the [colour|color] of {x}?",
    "[Tell me|Name|Give me] the [colour|color] of {x}.",
    "[What|Which] [colour|color] does {x} have?",
    "{x}: [what|which] [colour|color]?",
)
_MIX = (
    "What [colour|color] do [you|I|we] get [if|when] [you|I|we] mix {a} and {b}?",
    "What do [you|I|we] get [if|when] [you|I|we] mix {a} [and|with] {b}?",
    "[What|Which] [colour|color] [do|does] {a} and {b} make?",
    "[Mix|Combine|Please mix] {a} [and|with] {b}.",
    "[What is|What's] {a} [and|mixed with|plus] {b}?",
)
_HOW_MANY_UNITS = (
    "How many {small} are in {large}?",
    "How many {small} are there in {large}?",
    "How many {small} [are there|are] in {large}?",
    "How many {small} does {large} have?",
    "How many {small} [is|make|make up] {large}?",
    "[Convert|Change] {large} [to|into] {small}.",
    "{large} in {small}?",
    "[What is|What's|How much is] {large} in {small}?",
)
DEFINE = (
    "What is {x}?",
    "What's {x}?",
    "[What is|What's|Whats|What exactly is] {x}?",
    "[Define|Explain|Describe] {x}.",
    "[Can you|Could you|Please] [explain|define|describe] {x}.",
    "[Can you|Could you|Please] [explain|say] what {x} is?",
    "[Tell me|Do you know|Explain to me|Can you tell me] what {x} is.",
    "What [does {bare} mean|is meant by {bare}|does the word {bare} mean]?",
    "[Give me|What is] [a|the] definition of {bare}.",
    "[What is|What's|Tell me] the meaning of [the word |]{bare}?",
    "Tell me about {x}.",
    "[What do you know|What can you tell me] about {x}?",
)
_MEMBER = (
    "Is {x} {sort}?",
    "[Is it true that|Would you say that|Do you think that|Do you think] {x} is {sort}?",
    "[True or false|Yes or no]: {x} is {sort}.",
    "[Tell me|Do you know] [if|whether] {x} is {sort}.",
)
_SORT_OF = (
    "What kind of thing is {x}?",
    "[What|Which] [kind|sort|type] of [thing|object] is {x}?",
    "{x} is [what|which] [kind|sort|type] of thing?",
)
_CAN = (
    "Can {who} {do}?",
    "Are {who} able to {do}?",
    "[Do you know|Tell me] [if|whether] {who} can {do}?",
    "[Is it true that|Do you think that|Do you think] {who} can {do}?",
    "[True or false|Yes or no]: {who} can {do}.",
)
_IS = (
    "Is {x} {p}?",
    "Do you think {x} is {p}?",
    "{x} is {p}, isn't it?",
    "[Is it true that|Would you say that|Do you think] {x} is [really |]{p}?",
    "[True or false|Yes or no]: {x} is [really |]{p}.",
    "{x} is [really |]{p}, [right|isn't it|correct]?",
)
_SOUND = (
    "What [sound|noise] does {x} make?",
    "What does {x} say?",
    "What sound does {x} make?",
    "[Which|What] [sound|noise] [do|does] {x} make?",
    "How does {x} [go|sound|speak|call]?",
    "[Tell me|Make|Give me] the [sound|noise] of {x}.",
    "What is the sound of {x}?",
)
_LIST = (
    "Name {n} {what}",
    "List {n} {what}",
    "Give me {n} {what}",
    "[Name|List|Give me|Tell me|Write|Show me|Can you name|Can you list|I need] {n} {what}.",
    "[Name|List|Give me|Tell me] {n} [examples of|different] {what}.",
    "[Give me|Make|Write] a list of {n} {what}.",
    "What are {n} [examples of |]{what}?",
    "{n} {what}[, please|].",
    "[Do you know|Can you think of|Could you name] {n} {what}?",
)
_LIST_ONE = (
    "[Name|Give me|Tell me|Say|Can you name|Pick|Think of] {one}.",
    "[Name|Give me] one {sort}.",
    "[Give me|Tell me|What is|What's] an example of {one}.",
)


def capitals(draw: Draw) -> Exchange:
    """A country's capital, a capital's country, and yes or no."""
    country = draw.some(tuple(CAPITALS))
    capital = CAPITALS[country]
    what = draw.some(("capital", "capital", "capital", "country", "true", "false"))
    small = draw.chance(0.15)

    def shown(name: str) -> str:
        return name.lower() if small else name

    if what == "capital":
        return Exchange(
            draw.wording(CAPITAL, x=shown(country)), f"The capital of {country} is {capital}.", f"{capital}."
        )
    if what == "country":
        country = next(c for c, known in CAPITALS.items() if known == capital)
        return Exchange(
            draw.wording(_COUNTRY, y=shown(capital)),
            f"{capital} is the capital of {country}.",
            f"{_sentence(country)}.",
        )
    claimed = capital if what == "true" else draw.some(tuple(CAPITALS.values()))
    question = draw.wording(_IS_CAPITAL, x=shown(country), y=shown(claimed))
    verdict = "yes" if claimed == capital else "no"
    return Exchange(question, f"The capital of {country} is {capital}, so {verdict}.")


def calendar(draw: Draw) -> Exchange:
    """Days and months: neighbours, positions, lengths, seasons, complete lists."""
    what = draw.rng.randrange(10)
    unit, names = draw.some((("day", DAYS), ("month", MONTHS)))
    index = draw.rng.randrange(len(names))
    name = names[index]
    shown = name.lower() if draw.chance(0.15) else name
    if what <= 1:
        found = names[(index + 1) % len(names)]
        return Exchange(draw.wording(_NEXT, x=shown, unit=unit), f"{found} comes after {name}.", f"{found}.")
    if what <= 3:
        found = names[index - 1]
        return Exchange(draw.wording(_PREVIOUS, x=shown, unit=unit), f"{found} comes before {name}.", f"{found}.")
    day = draw.rng.randrange(7)
    month = draw.rng.randrange(12)
    if what == 4:
        tomorrow = draw.chance(0.5)
        found = DAYS[(day + (1 if tomorrow else -1)) % 7]
        question = draw.wording(_TODAY_TOMORROW if tomorrow else _TODAY_YESTERDAY, x=DAYS[day])
        tense = "Tomorrow is" if tomorrow else "Yesterday was"
        return Exchange(question, f"{tense} {found}.", f"{found}.")
    if what == 5:
        question = draw.wording(
            _NTH_MONTH, n=draw.some((ORDINALS[month], ORDINALS[month], _ordinal(month + 1))), number=month + 1
        )
        return Exchange(question, f"{MONTHS[month]} is the {ORDINALS[month]} month.", f"{MONTHS[month]}.")
    if what == 6:
        extra = ", or 29 in a leap year" if month == 1 else ""
        answer = f"{MONTHS[month]} has {MONTH_LENGTHS[month]} days{extra}."
        return Exchange(draw.wording(_MONTH_DAYS, x=MONTHS[month]), answer, f"{MONTH_LENGTHS[month]}.")
    if what == 7:
        question = draw.wording(_MONTH_SEASON, x=MONTHS[month])
        return Exchange(question, f"{MONTHS[month]} is in {_SEASONS[month]}.", f"{_sentence(_SEASONS[month])}.")
    if what == 8:
        question, count = draw.some(
            (
                ("How many days [are there |are ]in a week?", "A week has 7 days."),
                ("How many months [are there |are ]in a year?", "A year has 12 months."),
                ("How many days [are there |are ]in a year?", "A year has 365 days, or 366 in a leap year."),
                ("How many weeks [are there |are ]in a year?", "A year has 52 weeks and a day."),
                ("How many seasons [are there|are there in a year|does a year have]?", "A year has 4 seasons."),
                ("How many hours [are there |are ]in a day?", "A day has 24 hours."),
                ("Which days are [on the|the] weekend?", "The weekend is Saturday and Sunday."),
                ("[What|Which] is the first month[| of the year]?", "January is the first month."),
                ("[What|Which] is the last month[| of the year]?", "December is the last month."),
                ("[What|Which] is the shortest month[| of the year]?", "February is the shortest month."),
                ("[What|Which] is the first day of the week?", "Monday is the first day of the week."),
            )
        )
        return Exchange(draw.wording((question, *_polite(question))), count)
    which, row = draw.some(
        (
            ("days of the week", DAYS),
            ("days of a week", DAYS),
            ("months of the year", MONTHS),
            ("months of a year", MONTHS),
            ("months", MONTHS),
            ("weekdays", DAYS[:5]),
            ("seasons", ["Spring", "summer", "autumn", "winter"]),
        )
    )
    return Exchange(draw.wording(_ALL, what=which), _enumerated(row))


def colours(draw: Draw) -> Exchange:
    """The colour of a thing, and the mixture of two colours."""
    if draw.chance(0.3):
        pair, mixed = draw.some(tuple(MIXTURES.items()))
        a, b = pair if draw.chance(0.5) else pair[::-1]
        return Exchange(draw.wording(_MIX, a=a, b=b), f"{_sentence(a)} and {b} make {mixed}.", f"{_sentence(mixed)}.")
    if draw.chance(0.12):
        thing = with_article(draw.some(ANY_COLOUR))
        return Exchange(
            draw.wording(COLOUR, x=thing, verb="is"), f"{_sentence(thing)} can have any colour.", "Any colour."
        )
    thing, verb, colour = draw.some(COLOURS)
    question = draw.wording(COLOUR[:5] if verb == "are" else COLOUR, x=thing, verb=verb)
    return Exchange(question, f"{_sentence(thing)} {verb} {colour}.", f"{_sentence(colour)}.")


def units(draw: Draw) -> Exchange:
    """The number of small units in one or a few large units."""
    large, large_plural, _, small_plural, factor = draw.some(UNITS)
    count = draw.some((1, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10))
    if count == 1:
        asked = draw.some(("an hour" if large == "hour" else with_article(large), f"one {large}", f"1 {large}"))
        said = f"1 {large}"
    else:
        asked = f"{draw.some((count, count, NUMBER_WORDS[count]))} {large_plural}"
        said = f"{count} {large_plural}"
    question = draw.wording(_HOW_MANY_UNITS, small=_american(small_plural, draw), large=_american(asked, draw))
    return Exchange(question, f"{said} = {count * factor} {small_plural}.", f"{count * factor}.")


def definitions(draw: Draw) -> Exchange:
    """The meaning of a word in one sentence."""
    word = draw.some(tuple(DEFINITIONS))
    named = word if word in NO_ARTICLE else with_article(word)
    if draw.chance(0.1):
        named = word
    question = draw.wording(DEFINE, x=named, bare=draw.some((word, word, f'"{word}"')))
    return Exchange(question, DEFINITIONS[word])


def facts(draw: Draw) -> Exchange:
    """Single facts, each with its own wordings."""
    wordings, answer, brief = draw.some(FACTS)
    options = tuple(_split_outside(wordings))
    return Exchange(draw.wording(tuple(o for option in options for o in (option, *_polite(option)))), answer, brief)


def membership(draw: Draw) -> Exchange:
    """Whether a thing belongs to a category, or which category it belongs to."""
    category = draw.some([c for c in CATEGORIES if c.singular not in ("ocean", "season", "continent")])
    item = draw.some(category.items)
    named = _named(item, category)
    own = with_article(category.singular)
    if draw.chance(0.2):
        return Exchange(draw.wording(_SORT_OF, x=named), f"{_sentence(named)} is {own}.", f"{_sentence(own)}.")
    if draw.chance(0.5):
        return Exchange(draw.wording(_MEMBER, x=named, sort=own), f"{_sentence(named)} is {own}, so yes.")
    other = draw.some([c for c in CATEGORIES if item not in c.items and not _overlap(category, c)])
    question = draw.wording(_MEMBER, x=named, sort=with_article(other.singular))
    return Exchange(question, f"{_sentence(named)} is {own}, so no.")


def yes_or_no(draw: Draw) -> Exchange:
    """Yes-or-no questions about abilities and properties."""
    if draw.chance(0.5):
        who, can, cannot = draw.some(ABILITIES)
        able = draw.chance(0.5)
        do = draw.some(can if able else cannot)
        question = draw.wording(_CAN, who=who, do=do)
        return Exchange(
            question, f"{'Yes' if able else 'No'}, {who} {'can' if able else 'cannot'} {do}.", "Yes." if able else "No."
        )
    thing, _, is_so, is_not = draw.some(PROPERTIES)
    right = draw.chance(0.5)
    question = draw.wording(_IS, x=thing, p=is_so if right else is_not)
    return Exchange(question, f"{'Yes' if right else 'No'}, {thing} is {is_so}.", "Yes." if right else "No.")


def sounds(draw: Draw) -> Exchange:
    """The sounds of animals."""
    animal, sound = draw.some(tuple(SOUNDS.items()))
    named = f"{draw.some((with_article(animal), with_article(animal), 'the ' + animal))}"
    return Exchange(
        draw.wording(_SOUND, x=named), f"{_sentence(with_article(animal))} says {sound}.", f"{_sentence(sound)}."
    )


def lists(draw: Draw) -> Exchange:
    """N different things of a category; each choice is right."""
    category = draw.some([c for c in CATEGORIES if len(c.items) >= 7])
    items = category.items
    count = draw.some((1, 2, 3, 3, 3, 3, 4, 5, 5, 6, 7))
    first = draw.rng.randrange(len(items))
    chosen = [items[(first + i) % len(items)] for i in range(count)]
    what = category.plural.replace("colours", draw.some(("colours", "colors")))
    if count == 1:
        sort = category.singular.replace("colour", draw.some(("colour", "color")))
        question = draw.wording(_LIST_ONE, one=with_article(sort), sort=sort)
        answer = f"{_sentence(_named(chosen[0], category))}."
    else:
        shown = NUMBER_WORDS[count] if draw.chance(0.6) else count
        question, answer = draw.wording(_LIST, n=shown, what=what), _enumerated(chosen, numbered=count > 3)
    return Exchange(question, answer, accepts=lambda said: _lists(said, count, category))


def _lists(said: str, count: int, category: Category) -> bool:
    known = {_sentence(i).lower() for i in category.items}
    named = [re.sub(r"^\d\. ", "", part.strip()).strip(".").lower() for part in said.replace(" and ", ", ").split(",")]
    named = [n.removeprefix("an ").removeprefix("a ") for n in named]
    return len(named) == len(set(named)) == count and known.issuperset(named)


def _named(item: str, category: Category) -> str:
    return with_article(item) if category.counted else item


def _overlap(one: Category, other: Category) -> bool:
    living = {"animal", "bird", "fish", "insect"}
    plants = {"tree", "flower", "vegetable", "fruit"}
    return any({one.singular, other.singular} <= group for group in (living, plants))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _enumerated(row: list[str], *, numbered: bool = False) -> str:
    """``A, b and c.`` or, numbered, ``1. a, 2. b, 3. c.``, so that a small model does not lose count."""
    if numbered:
        return f"{', '.join(f'{number}. {item}' for number, item in enumerate(row, 1))}."
    return _sentence(f"{', '.join(row[:-1])} and {row[-1]}.")


def _ordinal(n: int) -> str:
    return f"{n}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(n, 'th') }"


def _american(text: str, draw: Draw) -> str:
    return text.replace("metre", "meter").replace("litre", "liter") if draw.chance(0.4) else text


def _polite(question: str) -> tuple[str, ...]:
    lowered = question[:1].lower() + question[1:]
    return (
        f"Tell me: {lowered}",
        f"[Can you tell me|I want to know|Quick question|Do you know]: {lowered}",
        f"[A question|I have a question|Quiz]: {lowered}",
    )


def _split_outside(wordings: str) -> list[str]:
    """``wordings`` split at the bars outside brackets."""
    parts, depth = [""], 0
    for character in wordings:
        depth += (character == "[") - (character == "]")
        if character == "|" and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts
