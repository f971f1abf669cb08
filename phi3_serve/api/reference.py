"""The description of every endpoint, made of the OpenAPI document, as Markdown and as a page without scripts.

``python -m phi3_serve.api`` prints the Markdown; ``docs/api.md`` is its output.
"""

import html
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from phi3_serve.api.body_with_parameters import OF_PARAMETER
from phi3_serve.api.other_names import OTHER_NAMES
from phi3_serve.api.schema_words import Schema, referred, takes
from phi3_serve.parameter_defaults import CHAT_DEFAULTS, LIBRARY_DEFAULTS

_PARAMETERS = "GenerationParameters"
_OTHER_NAMES = "OtherNames"
_AT_THE_TOP = (
    f"Every field of {_PARAMETERS} that is not in this table can be a field of the body, too, by its own name or by "
    f"one of {_OTHER_NAMES}. A parameter that is given twice must have the same value."
)
_URL = "http://127.0.0.1:8000"
_LAST = "/api/"  # ollama's paths
_HEADINGS = ("field", "takes", "default", "meaning")


@dataclass(frozen=True, slots=True)
class Table:
    """The fields of one object: rows of what ``_HEADINGS`` names. Text between backticks is code."""

    name: str
    about: str
    rows: tuple[tuple[str, str, str, str], ...]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One route."""

    title: str  # method and path
    about: str
    takes: Table | None
    after_table: str
    example: str | None
    statuses: tuple[tuple[str, str], ...]

    @property
    def anchor(self) -> str:
        """The name of its heading in a link, as GitHub makes it."""
        return re.sub(r"[^\w -]", "", self.title.lower()).replace(" ", "-")


@dataclass(frozen=True, slots=True)
class Reference:
    """Everything that is described."""

    title: str
    endpoints: tuple[Endpoint, ...]
    objects: tuple[Table, ...]  # that fields refer to


def reference(document: Schema) -> Reference:
    """What the OpenAPI ``document`` says."""
    schemas: Mapping[str, Schema] = document["components"]["schemas"]
    routes = [(path, method, route) for path, methods in document["paths"].items() for method, route in methods.items()]
    routes.sort(key=lambda each: each[0].startswith(_LAST))  # the application needs them first
    seen: set[str] = set()
    endpoints = tuple(_endpoint(path, method, route, schemas, seen) for path, method, route in routes)
    own = {_body_name(route) for _, _, route in routes}
    objects = [_table(name, schemas[name]) for name in schemas if name not in own]
    objects.append(_other_names(max(schemas.values(), key=_num_other_fields)["properties"]))
    return Reference(document["info"]["title"], endpoints, tuple(sorted(objects, key=lambda table: table.name)))


def as_markdown(described: Reference) -> str:
    """For ``docs/api.md``."""
    return "\n".join(_markdown_lines(described)) + "\n"


def as_page(described: Reference) -> str:
    """One HTML document: no script, nothing from elsewhere."""
    body = "".join(_html_blocks(described))
    title = html.escape(described.title)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{title}: the API</title><style>{_STYLE}</style><main><h1>{title}: the API</h1>"
        f'<p>The same as a machine reads it: <a href="openapi.json">openapi.json</a></p>{body}</main></html>'
    )


def _endpoint(path: str, method: str, route: Schema, schemas: Mapping[str, Schema], seen: set[str]) -> Endpoint:
    """``seen`` are the bodies that are described already; a second route with the same one says so in words."""
    name = _body_name(route)
    if name is not None and name in seen:
        name = None
    elif name is not None:
        seen.add(name)
    takes = _form_or_query(route) if name is None else _table(name, schemas[name])
    example = None
    if name is not None and (examples := schemas[name].get("examples")):
        shown = path.replace("{model}", "phi-3-tiny")
        body = json.dumps(examples[0], indent=2)
        example = f"curl {_URL}{shown} -H \"Content-Type: application/json\" -d '{body}'"
    statuses = tuple((code, _sentence(r["description"])) for code, r in route["responses"].items() if code != "200")
    after_table = _AT_THE_TOP if name is not None and _num_other_fields(schemas[name]) else ""
    about = _sentence(route.get("description", ""))
    return Endpoint(f"{method.upper()} {path}", about, takes, after_table, example, statuses)


def _form_or_query(route: Schema) -> Table | None:
    """The fields of a form, or of the URL behind the question mark."""
    form = route.get("requestBody", {}).get("content", {}).get("multipart/form-data", {}).get("schema")
    if form is not None:
        return _table(form["title"], form)
    of_query = [field for field in route.get("parameters", ()) if field["in"] == "query"]
    described = {field["name"]: {"description": field.get("description", ""), **field["schema"]} for field in of_query}
    return _table("", {"properties": described}) if described else None


def _body_name(route: Schema) -> str | None:
    schema = route.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    return referred(schema)


def _table(name: str, schema: Schema) -> Table:
    required = schema.get("required", ())
    rows = tuple(
        (f"`{field}`", takes(of_field), _default(name, field, of_field, field in required), _sentence(_about(of_field)))
        for field, of_field in schema.get("properties", {}).items()
        if OF_PARAMETER not in of_field
    )
    return Table(name, _sentence(schema.get("description", "")), rows)


def _num_other_fields(schema: Schema) -> int:
    """How many names of generate parameters a body takes besides its own fields."""
    return sum(OF_PARAMETER in of_field for of_field in schema.get("properties", {}).values())


def _other_names(properties: Schema) -> Table:
    """The names of other servers. ``properties`` of a body have the types of the values."""
    rows = tuple(
        (f"`{name}`", takes(properties[name]), "", _sentence(f"{other.servers}: `{other.parameter}`. {other.note}"))
        for name, other in OTHER_NAMES.items()
    )
    return Table(
        _OTHER_NAMES, "What other servers call a generate parameter. The names are also taken in generate_kwargs.", rows
    )


def _default(name: str, field: str, schema: Schema, is_required: bool) -> str:
    if is_required:
        return "required"
    if name == _PARAMETERS:
        of_chat, of_library = getattr(CHAT_DEFAULTS, field), getattr(LIBRARY_DEFAULTS, field)
        value = of_library if of_chat is None else of_chat
    else:
        value = schema.get("default")
    return "" if value is None else f"`{json.dumps(value)}`"


def _about(schema: Schema) -> str:
    return str(schema.get("description", ""))


def _sentence(text: str) -> str:
    """On one line, with a full stop."""
    joined = " ".join(text.split())
    return joined if not joined or joined.endswith((".", "!", "?")) else f"{joined}."


def _markdown_lines(described: Reference) -> Iterator[str]:
    yield f"# {described.title}: the API"
    yield ""
    yield "Made of the models that check the requests, by `python -m phi3_serve.api`. A server shows it at `/docs`."
    yield f"[{_PARAMETERS}](#{_PARAMETERS.lower()}) has every generate parameter."
    yield ""
    yield ", ".join(f"[{endpoint.title}](#{endpoint.anchor})" for endpoint in described.endpoints)
    for endpoint in described.endpoints:
        yield from ("", f"## {endpoint.title}", "", endpoint.about)
        if endpoint.takes is not None:
            yield from ("", *_markdown_table(_HEADINGS, endpoint.takes.rows))
        if endpoint.after_table:
            yield from ("", endpoint.after_table)
        if endpoint.example is not None:
            yield from ("", "```bash", endpoint.example, "```")
        if endpoint.statuses:
            yield from ("", *_markdown_table(("status", "when"), endpoint.statuses))
    for table in described.objects:
        yield from ("", f"## {table.name}", "", table.about, "", *_markdown_table(_HEADINGS, table.rows))


def _markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(headings)} |"
    yield "|---" * len(headings) + "|"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"


def _html_blocks(described: Reference) -> Iterator[str]:
    names = {table.name for table in described.objects}
    yield f"<p>{_html_cell(f'{_PARAMETERS} has every generate parameter.', names)}</p>"
    links = (f'<a href="#{one.anchor}">{html.escape(one.title)}</a>' for one in described.endpoints)
    yield f"<nav>{', '.join(links)}</nav>"
    for endpoint in described.endpoints:
        yield f'<h2 id="{endpoint.anchor}">{html.escape(endpoint.title)}</h2><p>{html.escape(endpoint.about)}</p>'
        if endpoint.takes is not None:
            yield _html_table(_HEADINGS, endpoint.takes.rows, names)
        if endpoint.after_table:
            yield f"<p>{_html_cell(endpoint.after_table, names)}</p>"
        if endpoint.example is not None:
            yield f"<pre>{html.escape(endpoint.example)}</pre>"
        if endpoint.statuses:
            yield _html_table(("status", "when"), endpoint.statuses, names)
    for table in described.objects:
        yield f'<h2 id="{table.name}">{table.name}</h2><p>{html.escape(table.about)}</p>'
        yield _html_table(_HEADINGS, table.rows, names)


def _html_table(headings: Sequence[str], rows: Sequence[Sequence[str]], names: set[str]) -> str:
    head = "".join(f"<th>{heading}</th>" for heading in headings)
    body = "".join(f"<tr>{''.join(f'<td>{_html_cell(cell, names)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<div><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _html_cell(text: str, names: set[str]) -> str:
    shown = re.sub(r"`(.*?)`", r"<code>\1</code>", html.escape(text, quote=False))
    linked = (rf'<a href="#{word}">{word}</a>' if word in names else word for word in re.split(r"(\w+)", shown))
    return "".join(linked)


_STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 }
main { max-width: 70rem; margin: 0 auto; padding: 1rem }
div { overflow-x: auto }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .35rem .6rem; border-bottom: 1px solid #8884 }
h2 { margin-top: 2.5rem; font-family: ui-monospace, monospace; font-size: 1.15rem }
code, pre { font: .9em ui-monospace, monospace; background: #8882; border-radius: 4px; padding: 0 .25em }
pre { padding: .75rem; overflow-x: auto }
""".strip()
