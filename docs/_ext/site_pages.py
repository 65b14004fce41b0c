"""How Sphinx builds the site: generated text in the pages, formulas as MathML, notebooks and the demo beside them."""

from __future__ import annotations

import inspect
import re
import shutil
from pathlib import Path
from typing import Any

import generated
from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.inspect import stringify_signature

_DEMO = "try"


class TryIt(SphinxDirective):
    """The demo within a page; where the build leaves it out, what writes it."""

    def run(self) -> list[nodes.Node]:
        if not self.config.shiftvit_demo:
            return self.parse_text_to_nodes("This build has no demo. `shiftvit demo cifar10 OUT` writes it.")
        address = f"{_DEMO}/index.html"
        return [
            nodes.raw(
                "",
                f'<p class="open"><a href="{address}">Open it on a page of its own</a></p>\n'
                f'<iframe class="demo" src="{address}" title="The demo" allow="camera; clipboard-read"></iframe>',
                format="html",
            )
        ]


def complete_page(app: Sphinx, name: str, source: list[str]) -> None:
    """Puts into a page what its comments ask for."""
    page = Path(app.env.doc2path(name))
    source[0], taken = generated.complete(source[0], page)
    for path in taken:
        app.env.note_dependency(path)


def read_docstring(_: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:  # noqa: ARG001
    """Marks up a docstring, which is plain text but for its sections: what is indented is code, and * is a star."""
    text = "\n".join(lines)
    code = re.compile(r"(?<=\n\n)((?: {4}.*\n+)+)")
    parts = re.split(r"(`[^`]*`)", code.sub(r".. code-block:: python\n\n\1", text))
    lines[:] = "".join(part if part.startswith("`") else part.replace("*", r"\*") for part in parts).split("\n")


def find_signature(_: Sphinx, what: str, name: str, thing: Any, options: Any, said: str, returned: str) -> Any:  # noqa: ARG001
    """Returns the arguments of Keras' classes, whose `__new__` takes any."""
    if what != "class" or said != "(*args, **kwargs)":
        return None
    signature = vars(thing).get("__signature__") or inspect.signature(thing.__init__)
    parameters = [each for each in signature.parameters.values() if each.name != "self"]
    return stringify_signature(signature.replace(parameters=parameters), show_annotation=False), None


def write_extras(app: Sphinx, fault: Exception | None) -> None:
    """Puts the executed notebooks, the figures that HTML names and the demo beside the pages."""
    if fault is not None or app.builder.name != "html":
        return
    out = Path(app.outdir)
    notebooks = Path(app.env.mystnb_config.output_folder)
    for path in notebooks.rglob("*.ipynb"):
        shutil.copyfile(path, out / path.relative_to(notebooks))
    shutil.copytree(generated.DOCS / "figures", out / "figures", dirs_exist_ok=True)
    demo = app.config.shiftvit_demo
    if demo == "make":
        from shiftvit.serve.demo import write_demo

        write_demo("cifar10", out / _DEMO)
    elif demo:
        shutil.copytree(demo, out / _DEMO, dirs_exist_ok=True)


def place_notebooks(app: Sphinx) -> None:
    """Keeps the executed notebooks beside the doctrees, not beside the site."""
    folder = Path(app.doctreedir).parent / "notebooks"
    app.env.mystnb_config = app.env.mystnb_config.copy(output_folder=str(folder))


def offer_notebook(app: Sphinx, name: str, _: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """Puts a link to a notebook's file below the title of its page."""
    if doctree is not None and (Path(app.env.mystnb_config.output_folder) / f"{name}.ipynb").is_file():
        file = f"{name.rpartition('/')[2]}.ipynb"
        how = f'<a href="{app.builder.get_relative_uri(name, "lesson/index")}">how</a>'
        where = f"for Jupyter, in a copy of the repository ({how})"
        link = f'<p class="notebook"><a href="{file}" download>{file}</a>, {where}</p>'
        context["body"] = context["body"].replace("</h1>", f"</h1>\n{link}", 1)


def visit_math(translator: Any, node: nodes.math) -> None:
    translator.body.append(tex2mathml(node.astext(), as_block=False))
    raise nodes.SkipNode


def visit_math_block(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_config_value("shiftvit_demo", "make", "env", (str,))
    app.add_directive("try-it", TryIt)
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    app.connect("builder-inited", place_notebooks, priority=900)
    app.connect("source-read", complete_page)
    app.connect("autodoc-process-signature", find_signature)
    app.connect("autodoc-process-docstring", read_docstring, priority=400)  # before napoleon makes sections of it
    app.connect("html-page-context", offer_notebook)
    app.connect("build-finished", write_extras)
    return {"version": "1", "parallel_read_safe": True}
