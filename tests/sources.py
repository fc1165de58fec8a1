"""What source files import."""

import ast
from pathlib import Path


def imports(path: Path) -> list[str]:
    """What a file imports, as MODULE or MODULE.NAME, wherever in it; its siblings left out."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom) and not node.level:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found
