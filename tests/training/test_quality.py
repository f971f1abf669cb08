"""What fewer bits cost phi-3-tiny."""

import pytest

from training import quality


@pytest.mark.slow
def test_8_bits_cost_nothing_and_4_bits_little() -> None:
    dialogues = quality.held_out(3)
    stored = list(quality.log_probabilities(quality.STORED.load(), dialogues))
    assert sum(len(ids) for _, ids in stored) == sum(sum(d.learned[1:]) for d in dialogues) > 200
    measured = [quality.measure(form, stored, dialogues, right=1.0) for form in quality.FORMS]
    whole, in_bfloat16, int8, int4, fp8, *of_caches = measured
    assert (whole.weights_error, whole.same_likeliest) == (0.0, 1.0)
    assert abs(whole.divergence) < 1e-9
    assert 1.0 < whole.perplexity < 1.2
    assert in_bfloat16.weights_error == 0.0
    assert 0 < in_bfloat16.divergence < 2e-4
    assert 0.005 < int8.weights_error < 0.015
    assert 0.05 < int4.weights_error < 0.085
    assert 0 < int8.divergence < 2e-4 < int4.divergence < 0.05
    assert int8.perplexity < 1.01 * whole.perplexity
    assert int4.perplexity < 1.1 * whole.perplexity
    assert int8.same_likeliest > 0.99
    assert 0.02 < fp8.weights_error < 0.03
    assert int8.divergence < fp8.divergence < 1e-2
    assert fp8.perplexity < 1.01 * whole.perplexity
    for of_cache, bound in zip(of_caches, (2e-4, 1e-2), strict=True):
        assert of_cache.weights_error == 0.0
        assert 0 < of_cache.divergence < bound
        assert of_cache.perplexity < 1.01 * whole.perplexity


def test_dialogues_are_joined_to_long_texts() -> None:
    dialogues = quality.held_out(10)
    texts = quality.joined(dialogues, 1000)
    assert sum(len(dialogue.ids) for dialogue in dialogues) - 1000 < sum(len(text.ids) for text in texts)
    whole = {tuple(dialogue.ids) for dialogue in dialogues}
    for text in texts:
        assert 1000 - 200 < len(text.ids) == len(text.learned) <= 1000
        assert any(tuple(text.ids[: len(one)]) == one for one in whole)
        assert not any(text.learned[:500])
        assert sum(text.learned[500:]) > 50


@pytest.mark.slow
def test_a_long_cache_in_8_bits_costs_little() -> None:
    texts = quality.joined(quality.held_out(4), 2000)
    stored = list(quality.log_probabilities(quality.STORED.load(), texts))
    in_int8, in_fp8 = (quality.measure(form, stored, texts, right=None) for form in quality.OF_CACHES)
    assert 0 < in_int8.divergence < in_fp8.divergence < 0.02
    assert in_int8.same_likeliest > 0.99


def test_the_table_has_a_line_for_each() -> None:
    one = quality.Quality("int4", 0.08, 1.25, 0.01, 0.5, 0.99, 0.9)
    assert [cell for column in quality.as_table([one]).columns for cell in column.cells] == [
        *("int4", "8.00%", "1.2500", "1.00e-02", "5.00e-01", "99.00%", "90.0%")
    ]
