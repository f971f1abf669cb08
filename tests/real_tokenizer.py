"""The real tokenizer of Phi-3, as a checkpoint has it, with any chat template; and a small one that differs in size."""

import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from phi3_serve.catalogue import EMBEDDED_TINY
from phi3_serve.text.tokenizer import Phi3Tokenizer

DATA = Path(__file__).parent / "data"
TOKENIZERS = DATA / "tokenizers"


def write(directory: Path, template: str | list[dict[str, str]] | None) -> Path:
    """Write the files of Phi-3-mini with ``template`` as their chat template."""
    return _write(directory, TOKENIZERS / "phi-3-mini.tokenizer.json", "phi-3-mini.tokenizer_config.json", template)


def write_small(directory: Path, template: str | list[dict[str, str]] | None) -> Path:
    """Write the files of phi-3-tiny with ``template`` as their chat template. Its 1,759 tokens are read in no time."""
    return _write(directory, EMBEDDED_TINY / "tokenizer.json", "tokenizer_config.json", template)


def _write(directory: Path, tokenizer: Path, config_name: str, template: str | list[dict[str, str]] | None) -> Path:
    shutil.copy(tokenizer, directory / "tokenizer.json")
    config = json.loads((tokenizer.parent / config_name).read_text())
    config.pop("chat_template", None)
    if template is not None:
        config["chat_template"] = template
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    (directory / "config.json").write_text('{"model_type": "phi3"}')  # AutoTokenizer takes another class without it
    return directory


@cache
def load() -> Any:
    """The tokenizer of Phi-3-mini, which no test changes."""
    with tempfile.TemporaryDirectory() as directory:
        return AutoTokenizer.from_pretrained(write(Path(directory), template_of("phi-3-mini")))


@cache
def served() -> Phi3Tokenizer:
    """The tokenizer of Phi-3-mini as a server has it."""
    return Phi3Tokenizer(load())


def template_of(name: str) -> str:
    """A chat template of ``data``."""
    if (path := DATA / "templates" / f"{name}.jinja").exists():
        return path.read_text()
    return str(json.loads((TOKENIZERS / f"{name}.tokenizer_config.json").read_text())["chat_template"])
