"""``python -m phi3_serve`` is the console script ``phi3-serve``."""

from phi3_serve.cli import app

app()
