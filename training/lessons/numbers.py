"""Comparison, counting, ordering, even and odd numbers."""

from collections.abc import Iterable
from random import Random

from training.dialogue import Draw, Exchange
from training.lessons.arithmetic import NUMBER_WORDS

_WHICH_LARGER = (
    "Which is larger, {a} or {b}?",
    "Which is bigger, {a} or {b}?",
    "[Which|What|Which number|What number] is [larger|bigger|greater|more], {a} or {b}?",
    "[Which|What] is the [larger|bigger|greater] [number|one][|,|:] {a} or {b}?",
    "Is {a} or {b} [larger|bigger|greater]?",
    "[Tell me the|Give me the|Name the] [larger|bigger|greater] [number |]of {a} and {b}.",
    "[What is|What's|Tell me] the [maximum|max] of {a} and {b}?",
    "Compare {a} and {b}: which is [larger|bigger|greater]?",
)
_WHICH_SMALLER = (
    "Which is smaller, {a} or {b}?",
    "[Which|What|Which number|What number] is [smaller|less|lower], {a} or {b}?",
    "[Which|What] is the [smaller|lower] [number|one][|,|:] {a} or {b}?",
    "Is {a} or {b} [smaller|lower]?",
    "[Tell me the|Give me the|Name the] [smaller|lower] [number |]of {a} and {b}.",
    "[What is|What's|Tell me] the [minimum|min] of {a} and {b}?",
    "Compare {a} and {b}: which is [smaller|lower]?",
)
_IS_LARGER = (
    "Is {a} larger than {b}?",
    "Is {a} bigger than {b}?",
    "Is {a} [larger|bigger|greater|more|higher] than {b}?",
    "[Is it true|Do you think] that {a} is [larger|bigger|greater|more] than {b}?",
    "{a} > {b}?",
    "Is {a} > {b}?",
    "[True or false|Yes or no]: {a} is [larger|bigger|greater] than {b}[.|?]",
)
_IS_SMALLER = (
    "Is {a} smaller than {b}?",
    "Is {a} less than {b}?",
    "Is {a} [smaller|less|lower] than {b}?",
    "[Is it true|Do you think] that {a} is [smaller|less|lower] than {b}?",
    "{a} < {b}?",
    "Is {a} < {b}?",
    "[True or false|Yes or no]: {a} is [smaller|less] than {b}[.|?]",
)
_COUNT = "[Count|Can you count|Could you count|Please count|I want you to count|Count for me|Count slowly|Let's count]"
_UP = (
    _COUNT + " [up |]from {a} to {b}.",
    _COUNT + " from {a} [up to|until|through] {b}.",
    "[List|Name|Write|Give me|Show me|Tell me|Say|Print] [all |]the numbers [from|between] {a} [to|and|up to] {b}.",
    "[List|Write|Give me|Show me] all numbers from {a} to {b}.",
)
_TO = (
    "Count to {b}.",
    _COUNT + " to {b}.",
    _COUNT + " up to {b}.",
    "[Can you count|Count] [to|till|until|up to] {b}[| for me].",
    "Do you know how to count to {b}?",
)
_DOWN = (
    _COUNT + " [down|backwards] from {b}[| to {a}].",
    _COUNT + " down from {b} to {a}.",
    "[Can you do a|Do a|Start a|Give me a] countdown from {b}.",
    "Count backwards from {b}.",
)
_AFTER = (
    "What comes after {a}?",
    "[What|Which number] comes [after|right after|next after] {a}?",
    "What is the [next number|number] after {a}?",
    "[What|Which] [number |]follows {a}?",
    "[Tell me|Give me|Name] the number after {a}.",
    "[What is|What's] the successor of {a}?",
)
_BEFORE = (
    "What comes before {a}?",
    "[What|Which number] comes [before|right before|just before] {a}?",
    "What is the [previous number|number] before {a}?",
    "[What|Which] [number |]precedes {a}?",
    "[Tell me|Give me|Name] the number before {a}.",
)
_SORT_UP = (
    "Sort {list}",
    "Sort these numbers: {list}",
    "[Sort|Order|Arrange|Put in order][:|] {list}.",
    "[Sort|Order|Arrange|Put] [these numbers|the numbers|the following numbers][: | ]{list}.",
    "[Sort|Order|Arrange] {list} [from smallest to largest|from low to high|in ascending order|ascending].",
    "[Sort|Order|Arrange|Put] [these numbers|the numbers] from smallest to [largest|biggest]: {list}.",
    "Put {list} in [order|ascending order|increasing order].",
    "[Can you|Could you] [sort|order] {list}[| for me]?",
)
_SORT_DOWN = (
    "[Sort|Order|Arrange] {list} [from largest to smallest|from high to low|in descending order|descending].",
    "[Sort|Order|Arrange|Put] [these numbers|the numbers] from [largest|biggest] to smallest: {list}.",
    "Put {list} in [descending order|decreasing order|reverse order].",
    "[Sort|Order|Arrange] {list}, [largest|biggest] first.",
)
_LARGEST = (
    "Largest of {list}?",
    "Maximum of {list}?",
    "[What|Which] [number |]is the [largest|biggest|greatest|highest|maximum] [of|among|in][:|] {list}?",
    "[Find|Tell me|Give me|Name] the [largest|biggest|greatest|highest] [number |]of {list}.",
    "[Largest|Biggest|Maximum|Max] of {list}?",
)
_SMALLEST = (
    "Smallest of {list}?",
    "Minimum of {list}?",
    "[What|Which] [number |]is the [smallest|lowest|least|minimum] [of|among|in][:|] {list}?",
    "[Find|Tell me|Give me|Name] the [smallest|lowest] [number |]of {list}.",
    "[Smallest|Lowest|Minimum|Min] of {list}?",
)
_EVEN_OR_ODD = (
    "Is {a} even or odd?",
    "Is {a} odd or even?",
    "Even or odd: {a}?",
    "Odd or even: {a}?",
    "[Is|Is the number|Is number] {a} [even or odd|odd or even]?",
    "[Even or odd|Odd or even]: {a}?",
    "{a}: [even or odd|odd or even]?",
    "[Tell me|Say|Do you know] [whether|if] {a} is [even or odd|odd or even].",
)
_IS_EVEN = (  # or odd
    "Is {a} {p}?",
    "Is {a} an {p} number?",
    "[Is|Is the number|Is number] {a} [{p}|an {p} number|an {p} one]?",
    "[Tell me|Say|Do you know] [whether|if] {a} is [{p}|an {p} number].",
    "[True or false|Yes or no]: {a} is [{p}|an {p} number].",
    "[Is it true|Do you think|Would you say] that {a} is [{p}|an {p} number]?",
)


def comparison(draw: Draw) -> Exchange:
    """The comparison of two numbers with up to three digits."""
    _, a, b = draw.fresh(_pair)
    if draw.chance(0.5):
        largest = draw.chance(0.5)
        question = draw.wording(_WHICH_LARGER if largest else _WHICH_SMALLER, a=a, b=b)
        if a == b:
            return Exchange(question, f"{_digits(a, b)}{a} and {b} are equal.")
        picked, other = (max(a, b), min(a, b)) if largest else (min(a, b), max(a, b))
        return Exchange(question, f"{_digits(a, b)}{picked} is {'larger' if largest else 'smaller'} than {other}.")
    asks_larger = draw.chance(0.6)
    question = draw.wording(_IS_LARGER if asks_larger else _IS_SMALLER, a=a, b=b)
    relation = "larger than" if a > b else "smaller than" if a < b else "equal to"
    right = a > b if asks_larger else a < b
    return Exchange(question, f"{_digits(a, b)}{a} is {relation} {b}, so {'yes' if right else 'no'}.")


def counting(draw: Draw) -> Exchange:
    """Counting up, down and in steps, and the neighbours of a number."""
    what = draw.some(("up", "up", "to", "to", "down", "after", "before", "twos"))
    if what in ("after", "before"):
        _, a = draw.fresh(lambda rng: (what, rng.randint(1, 10 ** rng.randint(1, 3) - 1)))
        found = a + 1 if what == "after" else a - 1
        shown = NUMBER_WORDS[a] if a <= 20 and draw.chance(0.2) else a
        question = draw.wording(_AFTER if what == "after" else _BEFORE, a=shown)
        return Exchange(question, f"{found} comes {what} {a}.", str(found))
    if what == "up":
        _, a, b = draw.fresh(_short_range)
        return _row(draw.wording(_UP, a=a, b=b), range(a, b + 1))
    if what == "to":
        b = draw.rng.choice((*range(2, 21), 10, 10, 5, 3))
        shown = NUMBER_WORDS[b] if draw.chance(0.25) else b
        return _row(draw.wording(_TO, b=shown), range(1, b + 1))
    if what == "down":
        b = draw.rng.choice((*range(2, 21), 10, 10, 5, 3))
        return _row(draw.wording(_DOWN, a=1, b=b), range(b, 0, -1))
    step, name = draw.some(((2, "twos"), (5, "fives"), (10, "tens"), (3, "threes")))
    b = step * draw.rng.randint(3, 10)
    wordings = (
        "[Count|Can you count] [by|in] {name} [up |]to {b}.",
        "[Count|Can you count] to {b} [by|in] {name}.",
        "[Count|Can you count] to {b} in steps of {step}.",
    )
    return _row(draw.wording(wordings, name=name, step=step, b=b), range(step, b + 1, step))


def ordering(draw: Draw) -> Exchange:
    """Three to five numbers below a hundred: their order, the largest, the smallest."""
    _, numbers = draw.fresh(_few)
    joined = draw.some((", ", ", ", " ")).join(map(str, numbers))
    if draw.chance(0.3):
        joined = ", ".join(map(str, numbers[:-1])) + f" and {numbers[-1]}"
    what = draw.some(("up", "up", "down", "largest", "smallest"))
    if what == "up":
        return _row(draw.wording(_SORT_UP, list=joined), sorted(numbers))
    if what == "down":
        return _row(draw.wording(_SORT_DOWN, list=joined), sorted(numbers, reverse=True))
    picked = max(numbers) if what == "largest" else min(numbers)
    question = draw.wording(_LARGEST if what == "largest" else _SMALLEST, list=joined)
    return Exchange(question, f"The {what} is {picked}.", str(picked))


def even_or_odd(draw: Draw) -> Exchange:
    """Whether a number is even."""
    _, a = draw.fresh(lambda rng: ("even", rng.randint(0, 10 ** rng.randint(1, 3) - 1)))
    kind = "odd" if a % 2 else "even"
    if draw.chance(0.4):
        return Exchange(draw.wording(_EVEN_OR_ODD, a=a), f"{a} ends in {a % 10}, so it is {kind}.")
    asked = draw.some(("even", "odd"))
    verdict = "yes" if asked == kind else "no"
    return Exchange(draw.wording(_IS_EVEN, a=a, p=asked), f"{a} ends in {a % 10}, so {verdict}, it is {kind}.")


def _digits(a: int, b: int) -> str:
    """The comparison of two numbers of equal length: pairs of digits up to the first difference."""
    if len(str(a)) != len(str(b)):
        return ""
    compared = []
    for x, y in zip(str(a), str(b), strict=True):
        compared.append(f"{x} {'=' if x == y else '<' if x < y else '>'} {y}")
        if x != y:
            break
    return f"{', '.join(compared)}: "


def _row(question: str, numbers: Iterable[int]) -> Exchange:
    row = ", ".join(map(str, numbers))
    return Exchange(question, f"{row}.", row)


def _pair(rng: Random) -> tuple[str, int, int]:
    a = rng.randint(0, 10 ** rng.randint(1, 3) - 1)
    near = rng.random()
    if near < 0.06:
        return "<>", a, a
    if near < 0.12:
        return "<>", a % 10, a % 10
    if near < 0.4:
        return "<>", a, max(0, a + rng.choice((-30, -10, -9, -2, -1, 1, 2, 9, 10, 30)))
    return "<>", a, rng.randint(0, 10 ** rng.randint(1, 3) - 1)


def _short_range(rng: Random) -> tuple[str, int, int]:
    a = rng.choice((1, 1, rng.randint(0, 20), rng.randint(0, 99), rng.randint(0, 200)))
    return "to", a, a + rng.randint(2, 12)


def _few(rng: Random) -> tuple[str, tuple[int, ...]]:
    largest = rng.choice((9, 20, 99, 99))
    return "few", tuple(rng.sample(range(1, largest + 1), rng.randint(3, 5)))
