"""How the site is built: `make docs`, or `sphinx-build docs site`."""

import os
import sys
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "torch")  # also that of the lesson; the extra [docs] brings it
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parent / "_ext"))

from shiftvit import __version__

project = "shiftvit"
author = "The shiftvit developers"
copyright = author
version = release = __version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.githubpages", "site_pages"]
exclude_patterns = ["_ext"]
templates_path = ["_templates"]

# The README's section links and those between the pages, as GitHub makes them.
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence", "dollarmath", "deflist", "attrs_block"]
myst_links_external_new_tab = False
highlight_language = "bash"
default_role = "literal"
smartquotes_action = "D"  # dashes; quotation marks stay as they are

# The lesson's outputs come of a real run; a cell that fails, fails the build.
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 1800
nb_merge_streams = True
nb_output_stderr = "remove"  # progress, and what TensorFlow says of the machine

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_type_aliases = {"Source": "Source"}
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
toc_object_entries = False

html_theme = "furo"
html_title = "shiftvit"
html_logo = html_favicon = "../src/shiftvit/serve/page/mark.svg"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = [("copy.js", {"defer": "defer"})]
html_math_renderer = "mathml"
html_copy_source = False
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#08519c",
        "color-brand-content": "#08519c",
        "color-brand-visited": "#54278f",
        "color-api-name": "#08519c",
        "color-api-pre-name": "#5c6c7c",
    },
    "dark_css_variables": {
        "color-brand-primary": "#9ecae1",
        "color-brand-content": "#9ecae1",
        "color-brand-visited": "#cab2d6",
        "color-api-name": "#9ecae1",
        "color-api-pre-name": "#95a3b1",
    },
}
