"""The documentation site: Sphinx reads the Markdown of this folder, and pages that are made from elsewhere.

`pip install -e '.[docs]' && sphinx-build -W --keep-going docs site` builds it. Pages that are made from what lies
elsewhere (docstrings, notebooks, the changelog, the benchmarks) go to `docs/generated/`, which is not kept.
DOCS_EXECUTE=1 runs the notebooks, so that their pages show pictures.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import site_pages

import diffusion_jax

project = "diffusion_jax"
author = "The diffusion_jax authors"
project_copyright = author
version = release = diffusion_jax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_templates", "**/.ipynb_checkpoints"]
default_role = (
    "autolink"  # `name` in a docstring is a link if it is a public name, and code if not.
)
nitpicky = False
suppress_warnings = ["myst.strikethrough"]

myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 4  # As on GitHub: the same links work there.
nb_execution_mode = "force" if os.environ.get("DOCS_EXECUTE") else "off"
nb_execution_timeout = 900
nb_execution_raise_on_error = True
nb_output_stderr = "remove"  # Progress bars.

autosummary_generate = True
autosummary_imported_members = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autoclass_content = "class"
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_attr_annotations = False

html_theme = "furo"
html_title = f"diffusion_jax {version}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_theme_options = {
    "source_repository": f"{site_pages.REPOSITORY}/",
    "source_branch": "main",
    "source_directory": "docs/",
}


def setup(app):
    """Makes the generated pages, and turns links out of this folder into links to the repository."""
    site_pages.write_pages(Path(app.srcdir) / "generated")
    app.connect("source-read", site_pages.rewrite_source)
    app.connect("autodoc-process-docstring", site_pages.describe, priority=400)  # Before Napoleon.
    app.connect("autodoc-process-signature", site_pages.write_signature)
