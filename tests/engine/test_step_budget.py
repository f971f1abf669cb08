"""The tokens of a step after the device had no memory for one."""

from phi3_serve.engine.step_budget import GROW_AFTER_STEPS, MIN_TOKENS, StepBudget


def test_it_halves_what_did_not_fit_down_to_a_least() -> None:
    budget = StepBudget(2048)
    seen = []
    while budget.shrink(budget.limit):
        seen.append(budget.limit)
    assert seen == [1024, 512, 256, 128, MIN_TOKENS]
    assert budget.limit == MIN_TOKENS


def test_a_step_below_the_limit_counts_as_what_it_was() -> None:
    budget = StepBudget(2048)
    assert budget.shrink(300)
    assert budget.limit == 150
    assert not budget.shrink(10)
    assert budget.limit == MIN_TOKENS


def test_it_grows_back() -> None:
    budget = StepBudget(300)
    assert budget.shrink(200)
    for _ in range(GROW_AFTER_STEPS - 1):
        budget.count_fitting_step()
    assert budget.limit == 100
    for _ in range(3 * GROW_AFTER_STEPS):
        budget.count_fitting_step()
    assert budget.limit == 300


def test_a_small_budget_is_its_own_least() -> None:
    budget = StepBudget(16)
    assert not budget.shrink(16)
    assert budget.limit == 16
