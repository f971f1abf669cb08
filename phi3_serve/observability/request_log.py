"""One line for each request: JSON for machines, or words for people."""

import datetime
import json
import logging
import sys
from collections.abc import Callable
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, Literal

from phi3_serve.core.adapter import AdapterChoice
from phi3_serve.observability.request_record import RequestRecord

Format = Literal["auto", "json", "text", "off"]

FILE_BYTES, NUM_FILES = 100_000_000, 5
_NANOSECONDS = 1e9


class RequestLog:
    """Writes records. Use it as a sink of records."""

    def __init__(self, handler: logging.Handler, line_of: Callable[[dict[str, Any]], str]) -> None:
        self._handler = handler
        self._line_of = line_of

    def __call__(self, record: RequestRecord) -> None:
        """Write the line of ``record``."""
        line = self._line_of(fields(record))
        self._handler.handle(logging.LogRecord("phi3_serve.requests", logging.INFO, "", 0, line, None, None))

    def close(self) -> None:
        """Close the file."""
        self._handler.close()


def request_log(how: Format, path: Path | None) -> RequestLog | None:
    """A log in the file at ``path``, or to stderr; None for ``off``. ``auto``: words on a terminal, else JSON."""
    if how == "off":
        return None
    if path is None:
        handler: logging.Handler = logging.StreamHandler(sys.stderr)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = RotatingFileHandler(path, maxBytes=FILE_BYTES, backupCount=NUM_FILES, encoding="utf-8")
    is_terminal = path is None and sys.stderr.isatty()
    is_text = how == "text" or (how == "auto" and is_terminal)
    return RequestLog(handler, as_text if is_text else as_json)


def fields(record: RequestRecord) -> dict[str, Any]:
    """What the log says of a request; only what is known. Times in seconds. Several answers are added up."""
    began_at, generations = record.began_at, record.generations
    ended_at = began_at if record.ended_at is None else record.ended_at
    done = [one.done for one in generations if one.done is not None]
    timings = [one.timings for one in done if one.timings is not None]
    firsts = [one.first_at for one in generations if one.first_at is not None and one.request.stream]
    found: dict[str, Any] = {
        "time": datetime.datetime.fromtimestamp(began_at / _NANOSECONDS, datetime.UTC).isoformat(
            timespec="milliseconds"
        ),
        "request_id": record.request_id,
        "source": record.source,
        "method": record.method,
        "path": record.path,
        "status": record.status,
        "seconds": (ended_at - began_at) / _NANOSECONDS,
        "api_key": record.api_key,
        "model": generations[0].request.model if generations else None,
        "adapters": [_adapter(one) for one in generations[0].request.adapters] or None if generations else None,
        "stream": generations[0].request.stream if generations else None,
        "num_generations": len(generations) if len(generations) > 1 else None,
        "finish_reasons": [c.sequence.finish_reason for one in done for c in one.completions] or None,
        "prompt_tokens": sum(one.usage.prompt_tokens for one in done) if done else None,
        "completion_tokens": sum(one.usage.completion_tokens for one in done) if done else None,
        "first_token_s": (min(firsts) - began_at) / _NANOSECONDS if firsts else None,
        "queue_s": max((one.queue_s for one in timings), default=None),
        "prompt_s": max((one.prompt_s for one in timings), default=None),
        "answer_s": max((one.answer_s for one in timings), default=None),
        "error": next((one.error for one in generations if one.error is not None), None),
    }
    if record.status is None:
        found["error"] = found["error"] or "disconnected"
    return {
        name: round(value, 6) if isinstance(value, float) else value
        for name, value in found.items()
        if value is not None
    }


def as_json(found: dict[str, Any]) -> str:
    """One line of JSON, in ASCII: what a client sends must not break a line."""
    return json.dumps(found, ensure_ascii=True, separators=(",", ":"))


def as_text(found: dict[str, Any]) -> str:
    """One line for people."""
    time = found["time"][11:23]
    parts = [time, f"{found.get('status', '---')}", found["method"], _printable(found["path"])]
    parts.append(f"{found['seconds']:.2f} s")
    if "model" in found:
        parts.append(found["model"] + "".join(f"+{_printable(one['name'])}" for one in found.get("adapters", [])))
    if "completion_tokens" in found:
        parts.append(f"{found['prompt_tokens']} + {found['completion_tokens']} tokens")
    if "first_token_s" in found:
        parts.append(f"first after {found['first_token_s']:.2f} s")
    parts += found.get("finish_reasons", [])
    parts += [found[name] for name in ("error", "api_key") if name in found]
    parts.append(found["request_id"])
    return "  ".join(parts)


def _adapter(choice: AdapterChoice) -> dict[str, Any]:
    """The adapter as a request names it: without a strength if it gives none."""
    strength = {} if choice.strength is None else {"strength": choice.strength}
    return {"name": choice.name, **strength}


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)
