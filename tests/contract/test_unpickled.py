"""Law 5: nothing is ever unpickled."""

import ast
from pathlib import Path

import pytest
from tests.sources import imports

import skimp

SOURCE = Path(skimp.__file__).parent
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNSAFE_CALLS = {
    ("torch", "load"),
    ("torch", "save"),
    ("yaml", "load"),
    ("yaml", "load_all"),
    ("yaml", "full_load"),
    ("yaml", "unsafe_load"),
    ("np", "load"),
    ("numpy", "load"),
}


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: path.stem)
def test_source_unpickles_nothing(path: Path) -> None:
    assert not UNSAFE_MODULES & {name.partition(".")[0] for name in imports(path)}
    calls = {
        (node.value.id, node.attr)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    assert not UNSAFE_CALLS & calls
