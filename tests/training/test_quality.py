"""What fewer bits cost phi-3-tiny."""

import pytest

from training import quality


@pytest.mark.slow
def test_8_bits_cost_nothing_and_4_bits_little() -> None:
    dialogues = quality.held_out(3)
    stored = list(quality.log_probabilities(quality.STORED.load(), dialogues))
    assert sum(len(ids) for _, ids in stored) == sum(sum(d.learned[1:]) for d in dialogues) > 200
    whole, in_bfloat16, int8, int4 = (quality.measure(f, stored, dialogues, right=1.0) for f in quality.FORMS)
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


def test_the_table_has_a_line_for_each() -> None:
    one = quality.Quality("int4", 0.08, 1.25, 0.01, 0.5, 0.99, 0.9)
    assert [cell for column in quality.as_table([one]).columns for cell in column.cells] == [
        *("int4", "8.00%", "1.2500", "1.00e-02", "5.00e-01", "99.00%", "90.0%")
    ]
