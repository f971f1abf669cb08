"""The adapters on a device, with the main memory in its place."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from phi3_serve.bench.shapes import config
from phi3_serve.core.adapter import AppliedAdapter
from phi3_serve.engine.adapters.device_tier import Copied, DeviceTier, copy_at_once
from phi3_serve.engine.adapters.pages import PagedAdapter, PageLayout
from phi3_serve.engine.adapters.places import shapes
from phi3_serve.errors import InvalidRequest, MemoryFull
from tests.engine.adapters.drawing import applied, drawn

CPU = torch.device("cpu")
SMALL = type(
    "Config",
    (),
    {
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": None,
        "hidden_size": 20,
        "intermediate_size": 36,
        "num_hidden_layers": 1,
        "vocab_size": 50,
    },
)()


class SlowCopy:
    """``Copy`` that takes place when the test says so, or when the next step waits for it."""

    def __init__(self) -> None:
        self.under_way: list[_Slow] = []

    def __call__(self, source: Tensor, pool: Tensor, pages: Sequence[int]) -> Copied:
        self.under_way.append(_Slow(source, pool, pages))
        return self.under_way[-1]

    def finish(self) -> None:
        for copied in self.under_way:
            copied.before_next_step()


class _Slow:
    def __init__(self, source: Tensor, pool: Tensor, pages: Sequence[int]) -> None:
        self._source, self._pool, self._pages = source, pool, pages
        self._is_done = False

    def is_done(self) -> bool:
        return self._is_done

    def before_next_step(self) -> None:
        if not self._is_done:
            self._pool[list(self._pages)] = self._source
            self._is_done = True


def tier_of(num_pages: int, copy: Any = copy_at_once) -> DeviceTier:
    return DeviceTier(SMALL, torch.float32, CPU, num_pages * PageLayout(SMALL, torch.float32).num_bytes + 5, copy)


def prepared(tier: DeviceTier, rank: int, seed: int, **more: Any) -> PagedAdapter:
    return tier.prepare(drawn(SMALL, rank, seed, **more))


def product(tier: DeviceTier, adapters: tuple[AppliedAdapter, ...], place: int) -> Tensor:
    """What the pages of ``adapters`` add to the weight of a place."""
    ((*mix,),) = tier.mixes([adapters])
    change = tier.change(place)
    strengths = torch.tensor([bits for _, bits in mix], dtype=torch.int32).view(torch.float32)
    factors = [strength * change.scalings[page] for (page, _), strength in zip(mix, strengths, strict=True)]
    return sum(
        (change.a[page].T @ change.b[page] * factor for (page, _), factor in zip(mix, factors, strict=True)),
        start=torch.zeros(change.a.shape[2], change.b.shape[2]),
    )


@pytest.mark.parametrize("rank", [1, 16, 40])
def test_pages_have_what_the_adapter_has(rank: int) -> None:
    tier = tier_of(5)
    loaded = [drawn(SMALL, rank, seed=seed, without=(2, 4)) for seed in (1, 2)]
    pages = [tier.prepare(adapter) for adapter in loaded[: 1 + (rank <= 16)]]
    assert [(one.number, one.name, one.rank) for one in pages] == [(one.number, one.name, rank) for one in loaded[: len(pages)]]  # fmt: skip
    assert pages[0].places == {0, 1, 3}
    assert pages[0].num_bytes == -(-rank // 16) * tier.layout.num_bytes
    mix = applied(*pages, strength=-0.7)
    for place in range(5):
        expected = torch.zeros(*reversed(shapes(SMALL)[place]))
        for adapter, one in zip(loaded, mix, strict=False):
            if (change := adapter.changes[place]) is not None:
                expected += change.a.T @ change.b * change.scaling * one.strength
        torch.testing.assert_close(product(tier, mix, place), expected)


def test_the_pool_takes_memory_when_the_first_adapter_comes() -> None:
    tier = tier_of(3)
    assert not tier.has_pool
    prepared(tier, 4, 1)
    assert tier.has_pool


def test_a_page_of_the_real_models() -> None:
    """Sixteen ranks of all linear layers, in two bytes a number; scalings and gaps are less than a thousandth."""
    for name, numbers in (("mini", 49_152 * 32 + 35_136), ("medium", 87_040 * 40 + 37_184)):
        assert 1 <= PageLayout(config(name), torch.bfloat16).num_bytes / (16 * 2 * numbers) < 1.001


def test_what_never_fits_is_refused() -> None:
    tier = tier_of(2)
    with pytest.raises(MemoryFull, match=r"adapter drawn1 has rank 33 and takes 0\.1 MB on the device, which has"):
        prepared(tier, 33, 1)
    assert not tier.has_pool
    three = [prepared(tier, 3, seed) for seed in range(3)]
    tier.check(applied(*three[:2]))
    with pytest.raises(InvalidRequest, match=r"`adapters` take 0\.1 MB together on the device, which has"):
        tier.check(applied(*three))
    with pytest.raises(InvalidRequest, match="ranks of 272 together, each rounded up to a multiple of 16; at most 256"):
        tier.check(applied(*three[:1] * 17))
    with pytest.raises(InvalidRequest, match=r"strengths are at most 3\.4e\+38"):
        tier.check(applied(three[0], strength=1e39))


def test_a_device_without_memory_for_adapters_says_so() -> None:
    with pytest.raises(MemoryFull, match=r"which has 0\.0 MB for adapters"):
        prepared(tier_of(0), 1, 1)


def test_a_request_waits_until_running_ones_leave_pages() -> None:
    tier = tier_of(3)
    large, small, other = prepared(tier, 20, 1), prepared(tier, 3, 2), prepared(tier, 3, 3)
    assert tier.can_start(applied(large), [])
    assert tier.can_start(applied(small), applied(large))
    assert not tier.can_start(applied(other), applied(large, small))
    assert tier.can_start(applied(small), applied(large))  # nobody lost a page
    assert tier.can_start(applied(other), applied(large))
    torch.testing.assert_close(product(tier, applied(large), 0), reference(large, 0))
    torch.testing.assert_close(product(tier, applied(other), 0), reference(other, 0))


def reference(adapter: PagedAdapter, place: int) -> Tensor:
    """What ``adapter`` adds by itself, with a strength of 1."""
    alone = tier_of(len(adapter.pages))
    alone._make_pool()
    return product(alone, applied(adapter), place)


def test_a_request_waits_for_the_copy_and_a_step_does_not() -> None:
    copy = SlowCopy()
    tier = tier_of(2, copy)
    adapter, other = prepared(tier, 3, 1), prepared(tier, 3, 2)
    assert not tier.can_start(applied(adapter), [])
    assert not tier.can_start(applied(adapter), [])
    assert len(copy.under_way) == 1  # it began once
    copy.finish()
    assert tier.can_start(applied(adapter), [])
    tier.mixes([applied(adapter)])
    assert not tier.can_start(applied(other), applied(adapter))
    torch.testing.assert_close(product(tier, applied(adapter), 1), reference(adapter, 1))
    torch.testing.assert_close(product(tier, applied(other), 1), reference(other, 1))  # the device waits


def test_the_adapters_of_one_step_do_not_take_the_pages_of_each_other() -> None:
    tier = tier_of(2)
    first, second, third = (prepared(tier, 3, seed) for seed in range(3))
    tier.mixes([applied(first)])
    tier.mixes([applied(second)])
    mixes = tier.mixes([applied(third), (), applied(first), applied(third)])
    assert mixes[1] == ()
    assert mixes[0] == mixes[3]
    assert mixes[0] != mixes[2]
    with pytest.raises(RuntimeError, match="drawn1 does not fit into the 2 pages"):
        tier.mixes([applied(first), applied(second), applied(third)])


def test_copies_that_no_step_waited_for_are_forgotten() -> None:
    tier = tier_of(1, SlowCopy())
    for seed in range(20):
        tier.can_start(applied(prepared(tier, 2, seed)), [])
    assert len(tier._copies) == 1
