"""Where torch computes: in as few threads as may be."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def in_passing_thread(act: Callable[[], T]) -> T:
    """Do ``act`` in a thread that ends with it.

    For loading a model in the process of an engine. libgomp gives workers to every thread that computes in parallel,
    and they live as long as it does. Once there are more of them than cores, the engine's own workers sleep between
    two operations instead of spinning (``gomp_throttled_spin_count_var``), and a step takes a third longer.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(act).result()
