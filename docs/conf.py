"""Sphinx builds the site from the Markdown pages, the docstrings and the commands: `make docs`."""

from importlib.metadata import version as installed

project = "lora-bank"
author = "The lora-bank developers"
project_copyright = "The lora-bank developers, Apache License 2.0"
release = installed("lora-bank")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_click",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"lora-bank {release}"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4

# Docstrings are NumPy's kind; types are in the signatures.
napoleon_google_docstring = False
napoleon_use_rtype = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "separated"
