"""The limit of tokens a minute of an API key, over time."""

import pytest

from phi3_serve.api.token_budget import TokenBudget


class Clock:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_it_is_full_at_first_and_after_a_minute_but_never_fuller(clock: Clock) -> None:
    budget = TokenBudget(600, clock)
    assert budget.remaining == 600
    budget.spend(450)
    assert (budget.remaining, budget.seconds_until(600), budget.seconds_until(1)) == (150, 45, 0)
    clock.seconds += 30
    assert budget.remaining == 450
    clock.seconds += 3600
    assert budget.remaining == 600


def test_a_debt_is_paid_before_anything_remains(clock: Clock) -> None:
    budget = TokenBudget(60, clock)
    budget.spend(100)
    assert (budget.remaining, budget.seconds_until(1)) == (-40, 41)
    clock.seconds += 41
    assert budget.remaining == pytest.approx(1)


def test_over_an_hour_no_more_than_the_limit_is_spent(clock: Clock) -> None:
    budget, spent = TokenBudget(1000, clock), 0
    for _ in range(3600):
        if budget.remaining >= 1:
            budget.spend(700)
            spent += 700
        clock.seconds += 1
    assert 60 * 1000 <= spent <= 61 * 1000 + 700


def test_a_new_limit_keeps_what_is_used(clock: Clock) -> None:
    budget = TokenBudget(100, clock)
    budget.spend(80)
    budget.per_minute = 1000
    assert budget.remaining == 920
    budget.per_minute = 50
    assert budget.remaining == -30
