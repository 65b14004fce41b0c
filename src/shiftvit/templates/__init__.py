"""Pages made from templates: the model card in Markdown, the report of a run in HTML."""

from __future__ import annotations

import json
import re
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from shiftvit.errors import pluralize, to_one_line

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup


def render(name: str, /, **values: Any) -> str:
    """Returns a page: a template of this folder, filled in; every value is escaped as the page's format needs it.

    Args:
        name: the template's file name; its suffix is the page's format, `.md` or `.html`.
        values: what the template refers to.
    """
    return _make_environment(name.endswith(".md")).get_template(name).render(values)


@cache
def _make_environment(markdown: bool) -> Environment:
    # Imported here: only what writes a page pays for it.
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    made = Environment(
        loader=FunctionLoader(lambda name: resources.files(__name__).joinpath(name).read_text("utf-8")),
        autoescape=True,
        finalize=_escape_markdown if markdown else None,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {"yaml": _write_yaml, "pluralize": pluralize}
    return made


def _escape_markdown(value: Any) -> Any:
    """Returns a value as text that Markdown shows unchanged, on one line."""
    from markupsafe import Markup

    if hasattr(value, "__html__"):
        return value
    return Markup(re.sub(r"([\\`*_\[\]<>|&#~$])", r"\\\1", to_one_line(str(value))))


def _write_yaml(text: str) -> Markup:
    """Returns a string for YAML, quoted as in JSON, so that none is read as a number, a date or a "no"."""
    from markupsafe import Markup

    return Markup(json.dumps(to_one_line(text), ensure_ascii=False))
