"""The options of torch's allocator of GPU memory, which torch reads when it is imported. No torch."""

from collections.abc import MutableMapping


def set_allocator_options(environment: MutableMapping[str, str]) -> None:
    """Let torch's segments of GPU memory grow, so that steps of different sizes leave no gaps between them.

    Call it before torch is imported. Options of the operator stay as they are.
    """
    if not environment.keys() & {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"}:  # the second is the earlier name
        environment["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
