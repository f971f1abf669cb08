"""Beam search by hand: which candidates live on, which are finished, when it stops."""

import math

from phi3_serve.engine.sampling.hypotheses import BeamSearchState, BestHypotheses, Candidate, Hypothesis


def hypothesis(score: float, candidate: Candidate) -> Hypothesis:
    return Hypothesis(score, (candidate.token,), ())


def search(**given: object) -> BeamSearchState:
    return BeamSearchState(2, **{"length_penalty": 1.0, "early_stopping": False, "max_new_tokens": 10, **given})  # type: ignore[arg-type]


A, B, C, D = (
    Candidate(score, token, beam) for score, token, beam in ((-1.0, 5, 0), (-2.0, 6, 1), (-3.0, 7, 0), (-4.0, 8, 1))
)


def test_the_best_that_do_not_end_live_on() -> None:
    beams = search()
    assert beams.advance([A, B, C, D], [False, True, False, False], hypothesis, 2) == [A, C]
    assert [(h.score, h.token_ids) for h in beams.finished] == [(-1.0, (6,))]
    assert not beams.is_done


def test_an_end_beyond_the_number_of_beams_is_no_answer() -> None:
    beams = search()
    assert beams.advance([A, B, C, D], [False, False, True, True], hypothesis, 1) == [A, B]
    assert beams.finished == []


def test_early_stopping_in_its_three_forms() -> None:
    """Two answers are found, of -1 and -2 over one token each, so -2 is to be beaten; the best beam stands at -3.

    Over the present 1 token that gives -3, over the 10 it may reach -0.3.
    """
    after = {}
    for form in (True, False, "never"):
        beams = search(early_stopping=form)
        beams.advance([A, B, C, D], [True, True, False, False], hypothesis, 1)
        after[form] = beams.is_done
    assert after == {True: True, False: True, "never": False}


def test_a_negative_length_penalty_never_hopes_for_length() -> None:
    beams = search(early_stopping="never", length_penalty=-1.0)
    beams.advance([A, B, C, D], [True, True, False, False], hypothesis, 1)
    assert beams.is_done


def test_it_ends_when_nothing_lives() -> None:
    beams = search()
    beams.advance([A, B], [True, True], hypothesis, 1)
    assert beams.is_done


def test_who_ended_lives_on_where_all_others_are_impossible() -> None:
    """As in transformers, whose best running beam then has about -1e9, more than -inf."""
    beams = search()
    impossible = Candidate(-math.inf, 6, 1)
    assert beams.advance([A, impossible], [True, False], hypothesis, 2) == [
        Candidate(A.score - 1e9, A.token, A.beam),
        impossible,
    ]
    assert [h.score for h in beams.finished] == [-0.5]
    assert not beams.is_done


def test_only_the_best_hypotheses_of_a_group_are_kept() -> None:
    best = BestHypotheses(2, length_penalty=2.0, early_stopping=False, max_new_tokens=4)
    for number, total in enumerate((-8.0, -4.0, -6.0, -40.0)):
        best.add((number,), (), total, 2)
    assert [(h.score, h.token_ids) for h in best.found] == [(-1.0, (1,)), (-1.5, (2,))]
    assert best.is_complete(-6.1, 2)
    assert not best.is_complete(-5.9, 2)
