"""How the documentation is built: ``sphinx-build -W docs site``, after ``pip install '.[docs]'``."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pygments.lexers.special import TextLexer
from sphinx.errors import ExtensionError

import keepalive_worker
from docs_build import PARTS
from docs_build.reference import DisagreementError

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "keepalive-worker"
author = "The keepalive-worker contributors"
release = version = keepalive_worker.__version__

extensions = ["myst_parser"]
# Headings can be linked to by the names that GitHub gives them.
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"keepalive-worker {release}"
html_static_path = ["static"]
html_css_files = ["extra.css"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_use_index = False

#: A fence with the name of the file that it is: ```` ```python title="app.py" ````, which GitHub shows as well.
_TITLED = re.compile(r'^```(\w+) title="([^"]+)"$', re.MULTILINE)
#: Where a page wants something that is made from the code.
_GENERATED = re.compile(r"^<!-- generated: (.+?) -->$", re.MULTILINE)


def _read(app: Sphinx, docname: str, source: list[str]) -> None:
    """Sphinx has read a page: put the generated parts in, and titles into MyST's words.

    :raises ExtensionError: nothing is made under that name, or code and documentation disagree
    """
    try:
        text = _GENERATED.sub(lambda match: PARTS[match[1]](), source[0])
    except (KeyError, DisagreementError) as error:
        raise ExtensionError(f"{docname}: {error}") from error
    source[0] = _TITLED.sub(r"```{code-block} \1\n:caption: \2\n", text)


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _read)
    for language in ("caddy", "haproxy"):
        app.add_lexer(language, TextLexer)  # Pygments does not know them
