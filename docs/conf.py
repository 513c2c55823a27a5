"""Sphinx: the manual, its notebooks from studies/, its reference from the docstrings."""

import shutil
from pathlib import Path

from lrsearch.version import __version__

HERE = Path(__file__).parent
NOTEBOOKS = HERE / "notebooks"  # copies, as Sphinx reads nothing outside its folder
NOTEBOOKS.mkdir(exist_ok=True)
for notebook in (HERE.parent / "studies").glob("*.ipynb"):
    shutil.copyfile(notebook, NOTEBOOKS / notebook.name)

project, release = "lrsearch", __version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_static_path, html_css_files = ["static"], ["tables.css"]
html_show_copyright = False
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3  # links to a section of another page
nb_execution_mode = "off"  # studies/*.ipynb are shown as they are
nb_render_markdown_format = "gfm"  # certificates have tables
autodoc_typehints = "description"
exclude_patterns = ["_build", "jupyter_execute"]  # which a build writes
suppress_warnings = ["myst.header", "mystnb.unknown_mime_type"]  # plotly's own, which has a picture beside it
