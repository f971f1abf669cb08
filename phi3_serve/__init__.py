"""phi3-serve: Microsoft's Phi-3 models behind KAITO's ``POST /chat``, as a Ray Serve application."""

__version__ = "0.1.0"
