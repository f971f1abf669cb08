"""``python -m phi3_serve.bench`` is ``phi3-serve bench``, for machines that have only what the engine needs."""

from phi3_serve.bench.cli import app

app()
