"""What the pages of the site take from elsewhere, as Markdown: parts of other files, commands, settings, recipes.

A page asks for it with a comment on a line of its own: `<!-- part: ../README.md#predict -->`, `<!-- commands -->`.
"""

from __future__ import annotations

import ast
import json
import os
import re
import types
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent
_RECIPE = re.compile(r"src/shiftvit/recipes/(\w+)\.toml")
# A link to a file: what stands before it, the file, the anchor.
_LINK = re.compile(r"(\]\()(?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?")
# The same for a picture in HTML.
_SOURCE = re.compile(r'(src(?:set)?=")(?!https?:|data:)([^"\s]+)(")')
_ASKED = re.compile(r"^<!-- (part|commands|settings|fields|recipes|run-folder)(?:: (\S+))? -->$", re.MULTILINE)
_KINDS = {bool: "true or false", int: "whole number", float: "number", str: "text", type(None): "none"}
_SIGNS = {Ge: ("ge", "≥"), Gt: ("gt", ">"), Le: ("le", "≤"), Lt: ("lt", "<")}


def complete(text: str, page: Path) -> tuple[str, set[Path]]:
    """Returns a page's text with what its comments ask for, and the files that this was taken from."""
    taken: set[Path] = set()

    def answer(found: re.Match[str]) -> str:
        kind, argument = found.groups()
        if kind == "part":
            name, _, heading = argument.partition("#")
            source = (page.parent / name).resolve()
            taken.add(source)
            return part(source, heading, page.parent)
        return _GENERATORS[kind](argument)

    return moved_links(_ASKED.sub(answer, text), page.parent), taken


def part(source: Path, heading: str, folder: Path) -> str:
    """Returns a section of a Markdown file without its heading, or what stands above the first one (`intro`).

    Relative links of the file are turned into links from `folder`. The introduction ends before its first table.
    A bare name takes the whole file but its title.
    """
    body = source.read_text("utf-8").split("\n", 1)[1]
    sections = re.split(r"^## (.+)$", body, flags=re.MULTILINE)
    named = dict(zip(map(slug, sections[1::2]), sections[2::2], strict=True))
    if heading == "intro":
        body = sections[0].split("\n|")[0]
    elif heading:
        body = named[heading]

    def link(found: re.Match[str]) -> str:
        return found[1] + Path(os.path.relpath(source.parent / found[2], folder)).as_posix() + (found[3] or "")

    return _SOURCE.sub(link, _LINK.sub(link, body)).strip("\n")  # code begins with spaces


def moved_links(text: str, folder: Path) -> str:
    """Returns a page's text with links to what the site has on a page turned into links to that page."""

    def link(found: re.Match[str]) -> str:
        target = Path(os.path.relpath(folder / found[2], ROOT)).as_posix()
        if recipe := _RECIPE.fullmatch(target):
            page, anchor = DOCS / "results.md", f"#{slug(recipe[1])}"
        elif (section := f"{target}{found[3] or ''}") in places():
            page, anchor = places()[section], ""
        elif target in places():
            page, anchor = places()[target], found[3] or ""
        else:
            return found[0]
        return found[1] + Path(os.path.relpath(page, folder)).as_posix() + anchor

    return _LINK.sub(link, text)


@lru_cache
def places() -> dict[str, Path]:
    """Returns the page that has a file of the checkout (`CHANGELOG.md`) or a section of it (`README.md#predict`)."""
    found = {"README.md": DOCS / "index.md"}
    for page in sorted(DOCS.rglob("*.md")):
        for kind, argument in _ASKED.findall(page.read_text("utf-8")):
            if kind == "part":
                found[Path(os.path.relpath(page.parent / argument, ROOT)).as_posix()] = page
    return found


def slug(heading: str) -> str:
    """Returns a heading's anchor, as on GitHub."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def commands(_: Any = None) -> str:
    """Returns a section for each command of the command line."""
    import typer

    from shiftvit.cli.main import app

    return "\n\n".join(_command(typer.main.get_command(app), "shiftvit"))


def _command(command: Any, name: str) -> Iterator[str]:
    import typer

    if subcommands := getattr(command, "commands", {}):
        for word in subcommands:
            yield from _command(subcommands[word], f"{name} {word}")
        return
    context = typer.Context(command, info_name=name)
    usage = command.get_usage(context).removeprefix("Usage: ")
    examples = [line.strip() for line in (command.epilog or "").splitlines() if line.startswith("  ")]
    yield f"## {name.removeprefix('shiftvit ')}\n\n{_escaped(command.help)}"
    yield f"```{{code-block}} text\n:class: usage\n\n{usage}\n```"
    if examples:
        yield "\n".join(["```bash", *examples, "```"])
    yield f":::{{program}} {name}\n:::"
    for parameter in command.params:
        said, help_text = parameter.get_help_record(context)
        if parameter.param_type_name == "argument":
            said = parameter.metavar or parameter.name.upper()
        yield f":::{{option}} {said}\n\n{_escaped(help_text)}\n:::"


def settings(_: Any = None) -> str:
    """Returns every setting of a recipe, with its type, range, default and meaning."""
    from shiftvit.recipes.recipe import Recipe

    return "\n\n".join(_settings(Recipe))


def _settings(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    inner = {name: kind for name, field in model.model_fields.items() if (kind := _section(field.annotation))}
    for name, field in model.model_fields.items():
        if name not in inner:
            yield (
                f":::{{confval}} {prefix}{name}\n:type: {_kind(field.annotation, field.metadata)}\n"
                f":default: `{_value(field.get_default(call_default_factory=True))}`\n\n"
                f"{_escaped(field.description or '')}\n:::"
            )
    for name, kind in inner.items():
        paragraph = (kind.__doc__ or "").split("\n\n")[0].strip()
        yield f"{'#' * (2 + prefix.count('.'))} {prefix}{name}\n\n{_escaped(paragraph)}"
        yield from _settings(kind, f"{prefix}{name}.")


def fields(path: str) -> str:
    """Returns a table of the fields of a JSON file that a pydantic model describes."""
    module, _, name = path.rpartition(".")
    model = getattr(__import__(module, fromlist=[name]), name)
    rows = ["| field | type | meaning |", "|---|---|---|"]
    for key, field in model.model_fields.items():
        section = _section(field.annotation)
        kind = "object" if section else _kind(field.annotation, field.metadata)
        meaning = field.description or (section.__doc__ if section else None) or ""
        rows.append(f"| `{key}` | {kind} | {_escaped(meaning.splitlines()[0] if meaning else '')} |")
    return "\n".join(rows)


def recipes(_: Any = None) -> str:
    """Returns a section for each recipe of the package: what its head says, and its settings."""
    from shiftvit import recipes as shipped

    return "\n\n".join(
        _recipe(name, shipped.read_text(name)[0], shipped.read_head(name)) for name in shipped.list_names()
    )


def _recipe(name: str, text: str, head: str) -> str:
    told, terms = [], []
    for line in head.splitlines():
        if label := re.match(r"(Command|Expect|Hardware|Result|Published|Measured|Source): +(.*)", line):
            terms.append([label[1], label[2]])
        elif terms:
            terms[-1][1] += f" {line}"
        else:
            told.append(line)
    for term in terms:
        if term[0] == "Command":
            command, bracket, rest = term[1].partition("(")
            term[1] = f"`{command.strip()}` {bracket}{_escaped(rest)}".strip()
        elif term[0] == "Result":
            term[1] = f"[{Path(term[1]).name}](../{term[1]})"
        else:
            term[1] = _escaped(term[1])
    body = text.split("\n\n", 1)[1].strip()
    listed = "\n".join(f"- **{label}**: {value}" for label, value in terms)
    return f"### {name}\n\n{_escaped(' '.join(told))}\n\n{listed}\n\n```toml\n{body}\n```"


def run_folder(_: Any = None) -> str:
    """Returns the table of a run folder's files, which stands at the top of the module that writes them."""
    source = ROOT / "src" / "shiftvit" / "training" / "runfolder.py"
    lines = (ast.get_docstring(ast.parse(source.read_text("utf-8"))) or "").splitlines()
    rows = [re.split(r" {2,}", line, maxsplit=1) for line in lines[2:] if line]
    return "\n".join(["| file | content |", "|---|---|", *(f"| `{name}` | {_escaped(told)} |" for name, told in rows)])


_GENERATORS: dict[str, Callable[[Any], str]] = {
    "commands": commands,
    "settings": settings,
    "fields": fields,
    "recipes": recipes,
    "run-folder": run_folder,
}


def _section(annotation: Any) -> type[BaseModel] | None:
    """Returns the settings that a field holds, also if they may be absent; None: it is a plain value."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _kind(annotation: Any, limits: Any) -> str:
    """Returns a type in words, with the range of its numbers."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(inner[0], [*_limits(inner[1:]), *limits])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin in (Union, types.UnionType):
        # A range belongs to the numbers, not to their absence.
        return " or ".join(_kind(kind, [] if kind is type(None) else limits) for kind in inner)
    if origin is tuple:
        if inner[-1] is Ellipsis:
            return f"list, each a {_kind(inner[0], [])}"
        return f"list of {len(inner)}: {', '.join(_kind(kind, []) for kind in inner)}"
    if origin is dict:
        return "object"
    signs = [f"{sign} {getattr(limit, key):.10g}" for limit in _limits(limits) for key, sign in [_SIGNS[type(limit)]]]
    return " ".join([_KINDS[annotation], *([" and ".join(signs)] if signs else [])])


def _limits(metadata: Any) -> list[Any]:
    flat = [item for entry in metadata for item in (entry.metadata if isinstance(entry, FieldInfo) else [entry])]
    return [item for item in flat if type(item) in _SIGNS]


def _value(value: Any) -> str:
    """Returns a default as one writes it after `--set KEY=`."""
    return "none" if value is None else json.dumps(value).strip('"')


def _escaped(text: str) -> str:
    """Returns text of the program as Markdown: what stands in backticks is code, so are options, the rest is text."""
    parts = re.split(r"(`[^`]+`|--[\w-]+)", text)
    for place, part in enumerate(parts):
        if part.startswith("--"):
            parts[place] = f"`{part}`"
        elif not part.startswith("`"):
            parts[place] = re.sub(r"([\\*_<>|\[\]#$])", r"\\\1", part)
    return "".join(parts)
