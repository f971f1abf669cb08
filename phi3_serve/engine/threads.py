"""Threads that compute with torch."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def in_temporary_thread(function: Callable[[], T]) -> T:
    """Call ``function`` in a thread that ends afterwards, and return its result.

    Used to load a model in the process of an engine. libgomp creates worker threads for every thread that computes in
    parallel, and they live as long as that thread. If there are more workers than cores, the engine's own workers
    sleep between two operations instead of spinning (``gomp_throttled_spin_count_var``), and a step takes a third
    longer.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()
