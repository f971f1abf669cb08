from phi3_serve.engine_statistics import EngineStatistics, Histogram


def test_a_value_belongs_to_the_bucket_whose_bound_it_does_not_exceed() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.5):
        histogram.observe(value)
    histogram.observe(2.0, count=10)
    assert histogram.counts == (2, 11, 1)
    assert histogram.sum == 25.5


def test_tokens_of_one_step_share_its_interval() -> None:
    statistics = EngineStatistics()
    statistics.count_tokens(1, since=10.0)
    statistics.count_tokens(1, since=10.0)
    statistics.count_tokens(4, since=10.0)  # an accepted draft: a quarter of the interval for each token
    statistics.count_tokens(1, since=8.0)  # a request that could not run in the step before
    statistics.end_step(10.02)
    statistics.end_step(11.0)
    between = dict(zip(statistics.inter_token_s.bounds, statistics.inter_token_s.counts, strict=False))
    assert {bound: count for bound, count in between.items() if count} == {0.005: 4, 0.02: 2, 2.5: 1}
    assert round(statistics.inter_token_s.sum, 6) == round(2 * 0.02 + 4 * 0.005 + 2.02, 6)
