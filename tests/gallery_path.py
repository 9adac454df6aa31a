"""Makes the applications of tests/apps known to the tests themselves, without running them."""

from __future__ import annotations

import ast

from harness import APPS


def function_names(module: str) -> list[str]:
    """The public functions of a module of the gallery, in their order."""
    tree = ast.parse((APPS / "gallery" / f"{module}.py").read_text())
    return [
        node.name for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    ]
