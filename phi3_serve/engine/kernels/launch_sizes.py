"""Sizes of launches, in plain Python: each call of the functions of Triton with these names takes the host 5 us."""


def cdiv(number: int, divisor: int) -> int:
    """``number / divisor``, rounded up."""
    return -(-number // divisor)


def next_power_of_2(number: int) -> int:
    """The smallest power of two that is at least ``number``; 0 for 0."""
    return 1 << (number - 1).bit_length() if number else 0
