"""Questions about letters (spelling, reversing, first and last letter) and words (opposites, plurals, repeating)."""

from random import Random

from training.dialogue import Draw, Exchange, letters
from training.lessons.facts import GREETINGS, GREETINGS_ABROAD, OPPOSITES, PLURALS
from training.lessons.vocabulary import WORDS, any_word, with_article

_QUOTES = ("{w}", "{w}", "{w}", "{w}", "{w}", "{w}", '"{w}"', "'{w}'")
SPELL = (
    "Spell {w}",
    "How do you spell {w}?",
    "How is {w} spelled?",
    "[Spell|Please spell|Can you spell|Could you spell|Spell out] [the word |]{w}.",
    "How [do you|do I|would you|should I|do we] spell [the word |]{w}?",
    "How is [the word|the name|the noun] {w} [spelled|spelt|written]?",
    "[What are|Tell me|Give me|List|Name] the letters [of|in] [the word |]{w}.",
    "[What is|What's|Tell me|Give me] the spelling of [the word |]{w}?",
)
_REVERSE = (
    "Reverse {w}",
    "Reverse the word {w}",
    "Spell {w} backwards",
    "What is {w} backwards?",
    "Flip {w} around",
    "[Reverse|Please reverse|Can you reverse|Could you reverse] [the word |the letters of |]{w}.",
    "[Spell|Write|Say|Can you spell|Can you write|Can you say] [the word |]{w} [backwards|backward|in reverse].",
    "What is {w} [backwards|backward|reversed|spelled backwards|in reverse]?",
    "[How do you|How would you] [spell|write|say] {w} backwards?",
    "{w} backwards",
    "[Turn|Flip] [the word |the letters of |]{w} [around|round].",
)
_FIRST = (
    "[What is|What's|Tell me|Give me|Name] the first letter [of|in] [the word |]{w}.",
    "[What|Which] letter does [the word |]{w} [start|begin] with?",
    "[Which|What] letter [is|comes|stands] first in [the word |]{w}?",
)
_LAST = (
    "[What is|What's|Tell me|Give me|Name] the last letter [of|in] [the word |]{w}.",
    "[What|Which] letter does [the word |]{w} end [with|in]?",
    "[Which|What] letter [is|comes|stands] last in [the word |]{w}?",
)
_HOW_MANY = (
    "How many letters are in {w}?",
    "How many letters does {w} have?",
    "How many letters are [there |]in [the word |the name |]{w}?",
    "How many letters does [the word |the name |]{w} [have|contain]?",
    "[Count|Please count|Can you count] the letters [of|in] [the word |]{w}.",
    "[How long is|What is the length of] the word {w}?",
)
_UPPER = (
    "[Write|Put|Say|Type] [the word |]{w} in [capitals|capital letters|upper case|uppercase|all caps].",
    "[Capitalize|Uppercase] all letters of {w}.",
    "[Make|Turn|Convert] {w} [to |into |]upper case.",
    "What is {w} in [capital letters|upper case]?",
)
_OPPOSITE = (
    "What is the opposite of {w}?",
    "[What is|What's|Whats] the [opposite|antonym|contrary] of {w}?",
    "[Tell me|Give me|Name|Say] [the opposite|an antonym] of {w}.",
    "[Opposite|The opposite] of {w}?",
    "[Which word|What] means the opposite of {w}?",
)
_PLURAL = (
    "What is the plural of {w}?",
    "[What is|What's|Whats] the plural [form |]of {w}?",
    "[Tell me|Give me|Say|Write] the plural [form |]of {w}.",
    "[Plural|The plural] of {w}?",
    "[One|1] {w}, [two|2|many] what?",
    "[How do you|How would you|Can you] say more than one {w}?",
    "How do you [write|form|make] the plural of {w}?",
)
_REPEAT = (
    "Echo {w}",
    "Repeat {w}",
    "Repeat after me: {w}",
    "Say: {w}",
    "[Repeat after me|Say after me|Repeat|Say this|Repeat this|Please repeat|Echo][: | ]{w}",
    "[Say|Write|Copy|Type|Please say|Print]: {w}",
    "[Repeat after me|Repeat|Say|Please repeat|Echo]: [\"{w}\"|'{w}']",
    '[Can you|Could you|Would you] [say|repeat] ["{w}"|{w}]?',
    "[Just say|Only say|Answer with|Reply with|Respond with][:|] {w}",
)
_TIMES = (
    "Say {w} {n} times.",
    "[Say|Repeat|Write|Type] [the word |]{w} {n} times.",
    "[Can you say|Please say|Could you say|I want you to say] [the word |]{w} {n} times?",
)
_COUNT_WORDS = {"two": 2, "three": 3, "four": 4, "five": 5, "2": 2, "3": 3, "4": 4, "5": 5}
_ABROAD = (
    "How do you say {w} in {language}?",
    "What is {w} in {language}?",
    "[What is|What's|Whats] [the word |]{w} in {language}?",
    "[Translate|Please translate] {w} [to|into] {language}.",
    "[Say|Can you say|Please say|How would you say] {w} in {language}.",
    "[What is|What's|Tell me|Give me] the {language} [word|expression|translation] [for|of] {w}?",
    "{w} in {language}?",
)


def spelling(draw: Draw) -> Exchange:
    """A word letter by letter: ``c-a-t``."""
    word = _word(draw, "spell")
    return Exchange(_about(draw, SPELL, word), spelling_answer(word), letters(spelled(word)))


def reversing(draw: Draw) -> Exchange:
    """A word backwards, after its letters."""
    word = _word(draw, "reverse")
    return Exchange(_about(draw, _REVERSE, word), reversing_answer(word), letters(word[::-1]))


def letter_questions(draw: Draw) -> Exchange:
    """The first letter, the last letter, the number of letters, and capital letters."""
    what = draw.some(("first", "last", "how many", "how many", "upper"))
    word = _word(draw, what)
    if what == "first":
        return Exchange(_about(draw, _FIRST, word), f"{word} begins with {letters(word[0])}.", letters(word[0]))
    if what == "last":
        answer = f"{letters(spelled(word))}: the last letter is {letters(word[-1])}."
        return Exchange(_about(draw, _LAST, word), answer, letters(word[-1]))
    if what == "how many":
        numbered = " ".join(f"{n}{c}" for n, c in enumerate(word, 1))
        answer = f"{letters(numbered)}, so {len(word)} letters."
        return Exchange(_about(draw, _HOW_MANY, word), answer, str(len(word)))
    answer = f"{letters(spelled(word))} in capitals is {letters(word.upper())}"
    return Exchange(_about(draw, _UPPER, word), answer, letters(word.upper()))


def opposites(draw: Draw) -> Exchange:
    """Pairs of opposites, in both directions."""
    pair = draw.some(OPPOSITES)
    word, other = pair if draw.chance(0.5) else pair[::-1]
    return Exchange(_about(draw, _OPPOSITE, word), f"The opposite of {word} is {other}.", other)


def plurals(draw: Draw) -> Exchange:
    """Regular and irregular plurals."""
    word, plural = draw.some(tuple(PLURALS.items()))
    return Exchange(_about(draw, _PLURAL, word), f"The plural of {word} is {plural}.", plural)


def repeating(draw: Draw) -> Exchange:
    """One to six words, repeated unchanged."""
    if draw.chance(0.25):
        word = _word(draw, "times")
        times = draw.some(tuple(_COUNT_WORDS))
        said = " ".join([word] * _COUNT_WORDS[times])
        return Exchange(draw.wording(_TIMES, w=word, n=times), said, said)
    words = draw.fresh(_phrase)
    return Exchange(draw.wording(_REPEAT, w=words), words, words)


def abroad(draw: Draw) -> Exchange:
    """Hello, thank you, goodbye, yes and no in six languages."""
    language = draw.some(tuple(GREETINGS_ABROAD))
    index = draw.rng.randrange(len(GREETINGS))
    said = GREETINGS[index]
    if said == "thank you" and draw.chance(0.3):
        said = "thanks"
    word = GREETINGS_ABROAD[language][index]
    return Exchange(
        _about(draw, _ABROAD, said, language=language), f"In {language}, {GREETINGS[index]} is {word}.", word
    )


def _about(draw: Draw, wordings: tuple[str, ...], word: str, **more: object) -> str:
    return draw.wording(wordings, w=draw.some(_QUOTES).format(w=word), **more)


def _word(draw: Draw, purpose: str) -> str:
    """A word to ask about. A word is held out from one kind of question only, so other kinds teach its letters."""
    return draw.fresh(lambda rng: (purpose, any_word(rng)))[1]


def spelling_answer(word: str) -> str:
    """The taught answer to the spelling of a word."""
    return f"{word} is spelled {letters(spelled(word))}."


def reversing_answer(word: str) -> str:
    """The taught answer to a word backwards."""
    backwards = word[::-1]
    return f"{letters(spelled(word))} backwards is {letters(spelled(backwards))}: {letters(backwards)}"


def spelled(word: str) -> str:
    """The letters of a word with hyphens between them."""
    return "-".join(word)


def _phrase(rng: Random) -> str:
    if rng.random() < 0.35:
        return any_word(rng)
    words = [any_word(rng) for _ in range(rng.randint(2, 6))]
    if rng.random() < 0.3:
        words[0] = words[0].capitalize()
    if rng.random() < 0.25:
        words.insert(
            rng.randrange(len(words)),
            rng.choice(("the", "a", "is", "and", "I", "my", "of", "to", str(rng.randint(0, 999)))),
        )
    if rng.random() < 0.25:
        return (
            f"The {rng.choice(WORDS)} is {rng.choice(('on', 'under', 'in', 'near'))} the {rng.choice(WORDS)}"
            + rng.choice(("", "."))
        )
    if rng.random() < 0.2:
        return f"I like {with_article(rng.choice(WORDS))}" + rng.choice(("", ".", "!"))
    return " ".join(words)
