from phi3_serve.engine.adapters.page_table import PageTable


def test_adapters_get_pages_of_their_own() -> None:
    table = PageTable(5)
    assert table.find(1) is None
    first, second = table.assign(1, 2, {1}), table.assign(2, 3, {2})
    assert first is not None
    assert second is not None
    assert sorted(first + second) == list(range(5))
    assert (table.find(1), table.find(2)) == (first, second)
    assert 1 in table
    assert 3 not in table


def test_the_least_recently_used_adapter_gives_its_pages_away() -> None:
    table = PageTable(4)
    held = {number: table.assign(number, 1, {number}) for number in range(4)}
    table.find(0)
    assert table.assign(9, 1, {9}) == held[1]
    assert 1 not in table
    assert table.assign(8, 2, {8}) == (*(held[2] or ()), *(held[3] or ()))
    assert table.find(0) == held[0]


def test_adapters_in_use_keep_their_pages() -> None:
    table = PageTable(4)
    table.assign(1, 2, {1})
    table.assign(2, 2, {2})
    assert table.assign(3, 3, {1, 3}) is None
    assert 2 in table  # nobody loses anything for what does not fit
    assert table.assign(3, 2, {1, 3}) is not None
    assert 1 in table
    assert 2 not in table


def test_pages_that_are_spread_hold_an_adapter() -> None:
    table = PageTable(5)
    for number in range(5):
        table.assign(number, 1, {number})
    for number in (1, 3):  # the most recently used ones stay
        table.find(number)
    pages = table.assign(9, 3, {9})
    assert pages is not None
    assert len(pages) == 3
    assert 1 in table
    assert 3 in table
