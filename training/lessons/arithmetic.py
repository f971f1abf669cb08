"""Arithmetic: addition and subtraction to three digits, small products and quotients.

The answer to a sum of up to two digits is the result alone. A longer sum is worked digit by digit as in school,
because a model this small cannot keep a carry that is not written down. A quotient is counted: the model cannot infer
a held-out quotient, but it knows each step of the counting.
"""

from random import Random

from training.dialogue import Draw, Exchange

THINGS = "apples coins books eggs cards stones pens cats friends stamps sweets flowers".split()
NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
).split()

_ASK = "[What is|What's|How much is|Calculate|Compute|Solve|Work out|Tell me|Can you [tell me|calculate|solve]|Do you know]"
ADD = (
    _ASK + " {a} + {b}?",
    _ASK + " {a} plus {b}?",
    _ASK + " {a}+{b}?",
    "What is {a} + {b}?",
    "What is {a} plus {b}?",
    "[What is|What's|Whats] {a} [+|plus] {b}?",
    "{a} + {b}",
    "{a}+{b}",
    "{a}[+| + ]{b}[| =|=|=?| = ?|?]",
    "{a} plus {b}[|?| is| equals]",
    "[Add|Sum] {a} and {b}.",
    "[Add|Please add|Can you add] {a} to {b}.",
    "[What is|What's|Give me|Tell me|Find|Calculate] the sum of {a} and {b}.",
    "What do [you|I|we] get [if|when] [you|I|we] add {a} [and|to] {b}?",
    "How [much|many] [is|are] {a} and {b} [together|in total|altogether]?",
    "If I have {a} {things} and [buy|get|find] {b} more, how many [{things} |]do I have?",
    "I have {a} {things}. I [buy|get|find] {b} more. How many [{things} |]do I have now?",
)
SUBTRACT = (
    _ASK + " {a} - {b}?",
    _ASK + " {a} minus {b}?",
    _ASK + " {a}-{b}?",
    "What is {a} - {b}?",
    "What is {a} minus {b}?",
    "[What is|What's|Whats] {a} [-|minus] {b}?",
    "{a} - {b}",
    "{a}-{b}",
    "{a}[-| - ]{b}[| =|=|=?| = ?|?]",
    "{a} minus {b}[|?| is| equals]",
    "[Subtract|Take|Please subtract|Can you subtract] {b} from {a}.",
    "[What is|What's|Give me|Tell me|Find|Calculate] the difference between {a} and {b}.",
    "What do [you|I|we] get [if|when] [you|I|we] [subtract|take] {b} from {a}?",
)
_TAKE_AWAY = (  # only for results from 0 on
    "What is left [if|when] [you|I|we] take {b} from {a}?",
    "If I have {a} {things} and [lose|sell|give away] {b}, how many [{things} |]are left?",
    "I have {a} {things}. I [lose|sell|give away] {b}. How many [{things} |]do I have now?",
)
MULTIPLY = (
    _ASK + " {a} [*|x|×] {b}?",
    _ASK + " {a} times {b}?",
    _ASK + " {a} multiplied by {b}?",
    "What is {a} * {b}?",
    "What is {a} x {b}?",
    "What is {a} times {b}?",
    "[What is|What's|Whats] {a} [*|x|times] {b}?",
    "{a} * {b}",
    "{a}*{b}",
    "{a}[*| * | x |x| × ]{b}[| =|=|=?| = ?|?]",
    "{a} times {b}[|?| is| equals]",
    "Multiply {a} [by|and|with] {b}.",
    "[What is|What's|Give me|Tell me|Find|Calculate] the product of {a} and {b}.",
    "What do [you|I|we] get [if|when] [you|I|we] multiply {a} [and|by] {b}?",
    "I have {a} boxes with {b} {things} each. How many {things} [are there|do I have]?",
)
DIVIDE = (
    _ASK + " {a} [/|÷] {b}?",
    _ASK + " {a} divided by {b}?",
    "What is {a} / {b}?",
    "What is {a} divided by {b}?",
    "[What is|What's|Whats] {a} [/|divided by] {b}?",
    "{a} / {b}",
    "{a}/{b}",
    "{a}[/| / | : ]{b}[| =|=|=?| = ?|?]",
    "{a} divided by {b}[|?| is| equals]",
    "[Divide|Please divide|Can you divide] {a} by {b}.",
    "What do [you|I|we] get [if|when] [you|I|we] divide {a} by {b}?",
    "How [many times|often] does {b} [go into|fit into|go in] {a}?",
    "[Share|Split|Divide] {a} {things} [among|between] {b} [people|children|friends]. How many does each get?",
)
_FACTOR = (
    "What times {b} is {a}?",
    "[What|Which number] times {b} [is|makes|gives] {a}?",
    "{b} times what is {a}?",
    "{b} times [what|which number] [is|makes|gives] {a}?",
    "{b} [*|x|×] [?|what] = {a}",
)


def addition(draw: Draw) -> Exchange:
    """The sum of two numbers with up to three digits each."""
    a, b = draw.fresh(lambda rng: _operands(rng, "+"))[1:]
    result = f"{a} + {b} = {a + b}."
    if max(a, b) < 100:
        return _ask(draw, ADD, a, b, result, str(a + b))
    return _ask(draw, ADD, a, b, f"{_column_sum(a, b)} So {result}")


def subtraction(draw: Draw) -> Exchange:
    """The difference of two numbers with up to three digits each; the result may be negative."""
    a, b = draw.fresh(lambda rng: _operands(rng, "-"))[1:]
    if draw.chance(0.75):
        a, b = max(a, b), min(a, b)
    wordings = SUBTRACT if a < b else SUBTRACT + _TAKE_AWAY
    return _ask(draw, wordings, a, b, difference(a, b), str(a - b) if 100 > a >= b else None)


def multiplication(draw: Draw) -> Exchange:
    """Products to 12 x 12, and of two digits with one digit."""
    a, b = draw.fresh(_factors)[1:]
    answer = product(a, b)
    return _ask(draw, MULTIPLY, a, b, answer, None if "so" in answer else str(a * b))


def division(draw: Draw) -> Exchange:
    """Quotients to 12 with divisors to 12, with or without a remainder, and missing factors."""
    if draw.chance(0.05):
        _, a = draw.fresh(lambda rng: ("/0", rng.randint(0, 144)))
        return _ask(draw, DIVIDE, a, 0, "Nobody can divide by zero.")
    if draw.chance(0.15):
        _, quotient, divisor = draw.fresh(lambda rng: ("? *", rng.randint(1, 12), rng.randint(1, 12)))
        a = quotient * divisor
        answer = f"{_taking_away(a, divisor)} So {divisor} × {quotient} = {a}, and it is {quotient}."
        return _ask(draw, _FACTOR, a, divisor, answer)
    quotient, divisor, remainder = draw.fresh(_quotient)[1:]
    a = quotient * divisor + remainder
    rest = f", remainder {remainder}" if remainder else ""
    result = f"{a} / {divisor} = {quotient}{rest}."
    if not quotient:
        return _ask(draw, DIVIDE, a, divisor, f"{a} < {divisor}, so {result}")
    return _ask(draw, DIVIDE, a, divisor, f"{_taking_away(a, divisor)} So {result}")


def three_terms(draw: Draw) -> Exchange:
    """A sum of three small numbers."""
    _, a, b, c = draw.fresh(lambda rng: ("+3", rng.randint(1, 30), rng.randint(1, 30), rng.randint(1, 30)))
    wordings = (
        _ASK + " {a} + {b} + {c}?",
        _ASK + " {a} plus {b} plus {c}?",
        "What is {a} + {b} + {c}?",
        "{a} + {b} + {c}",
        "{a}[+| + ]{b}[+| + ]{c}[|=| =|?]",
        "[Add|Sum|Add up] {a}, {b} and {c}.",
        "[What is|What's|Tell me] the sum of {a}, {b} and {c}?",
    )
    question = draw.wording(wordings, a=a, b=b, c=c)
    total = a + b + c
    return Exchange(question, f"{a} + {b} = {a + b}, and {a + b} + {c} = {total}.")


def difference(a: int, b: int) -> str:
    """The taught answer to a - b."""
    result = f"{a} - {b} = {a - b}."
    if a < b:
        return f"{_working_difference(b, a)}{b} - {a} = {b - a}, so {result}"
    working = _working_difference(a, b)
    return f"{working}So {result}" if working else result


def product(a: int, b: int) -> str:
    """The taught answer to a times b."""
    result = f"{a} × {b} = {a * b}."
    large, small = max(a, b), min(a, b)
    if large <= 12 or small <= 1 or large % 10 == 0:
        return result
    tens, ones = large // 10 * 10, large % 10
    return f"{tens} × {small} = {tens * small}, {ones} × {small} = {ones * small}, so {result}"


def _ask(draw: Draw, wordings: tuple[str, ...], a: int, b: int, answer: str, brief: str | None = None) -> Exchange:
    as_words = max(a, b) <= 20 and draw.chance(0.2)
    shown_a, shown_b = (NUMBER_WORDS[a], NUMBER_WORDS[b]) if as_words else (a, b)
    question = draw.wording(wordings, a=shown_a, b=shown_b, things=draw.some(THINGS))
    return Exchange(question, answer, brief)


def _operands(rng: Random, sign: str) -> tuple[str, int, int]:
    digits = rng.choice(
        ((1, 1), (1, 1), (2, 1), (1, 2), (2, 2), (2, 2), (2, 2), (3, 1), (3, 2), (2, 3), (3, 3), (3, 3), (3, 3))
    )
    a, b = (rng.randint(10 ** (d - 1) if d > 1 else 0, 10**d - 1) for d in digits)
    if rng.random() < 0.08:
        a = rng.choice((10, 20, 50, 100, 200, 500, 1, 0, a))
    return sign, a, b


def _factors(rng: Random) -> tuple[str, int, int]:
    if rng.random() < 0.55:
        return "*", rng.randint(0, 12), rng.randint(0, 12)
    a, b = rng.randint(10, 99), rng.randint(2, 9)
    return ("*", a, b) if rng.random() < 0.7 else ("*", b, a)


def _quotient(rng: Random) -> tuple[str, int, int, int]:
    divisor = rng.randint(1, 12)
    quotient = rng.randint(0, 12)
    remainder = rng.randint(1, divisor - 1) if divisor > 1 and rng.random() < 0.5 else 0
    return "/", quotient, divisor, remainder


def _taking_away(a: int, divisor: int) -> str:
    """The counting: ``Taking away 6: 9 (1), 3 (2).`` for 15 / 6."""
    steps = (f"{a - n * divisor} ({n})" for n in range(1, a // divisor + 1))
    return f"Taking away {divisor}: {', '.join(steps)}."


def _column_sum(a: int, b: int) -> str:
    """The columns of a + b: ``Ones: 7 + 5 = 12. Tens: 4 + 8 + 1 = 13. Hundreds: ...``"""
    steps, carry = [], 0
    for place in ("Ones", "Tens", "Hundreds"):
        x, y = a % 10, b % 10
        carried = " + 1" if carry else ""
        steps.append(f"{place}: {x} + {y}{carried} = {x + y + carry}.")
        carry = (x + y + carry) // 10
        a, b = a // 10, b // 10
    return " ".join(steps)


def _working_difference(a: int, b: int) -> str:
    """The columns of a - b for a >= b; empty for numbers of two digits."""
    if a < 100:
        return ""
    steps, borrowed = [], 0
    for place in ("Ones", "Tens", "Hundreds"):
        x, y = a % 10, b % 10
        take = " - 1" if borrowed else ""
        borrow = x - borrowed < y
        steps.append(f"{place}: {x + 10 if borrow else x}{take} - {y} = {x + 10 * borrow - borrowed - y}.")
        borrowed = int(borrow)
        a, b = a // 10, b // 10
    return " ".join(steps) + " "
