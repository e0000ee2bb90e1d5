import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from mnet_cli.errors import MachineError, UsageError
from mnet_cli.system import plugins
from mnet_cli.system.plugins import ExtensionPoint

SHAPES = ExtensionPoint("tests.shapes", "shape")


@pytest.fixture
def declared(monkeypatch):
    """Let installed packages seem to declare these entry points."""

    def declare(*points: tuple[str, str]) -> None:
        found = [EntryPoint(name, value, SHAPES.group) for name, value in points]
        monkeypatch.setattr(plugins, "entry_points", lambda group: found)
        plugins._declared.cache_clear()

    yield declare
    plugins._declared.cache_clear()


def test_names_are_listed_without_an_import(declared):
    declared(("square", "no_such_module:Square"), ("circle", "math:tau"))
    assert SHAPES.names() == ("circle", "square")


def test_an_object_is_loaded_by_its_name(declared):
    declared(("circle", "math:tau"))
    assert SHAPES.load("circle") > 6


def test_objects_that_cannot_be_imported_are_left_out_of_a_list(declared):
    declared(("circle", "math:tau"), ("square", "no_such_module:Square"))
    assert [name for name, _ in SHAPES.usable()] == ["circle"]


def test_an_unknown_name_is_an_error_with_the_nearest(declared):
    declared(("circle", "math:tau"), ("square", "math:pi"))
    with pytest.raises(UsageError, match=r'unknown shape "circel".*"circle".*circle, square'):
        SHAPES.load("circel")
    with pytest.raises(UsageError, match=r'--shape x: unknown shape "x". Choose one of circle'):
        SHAPES.load("x", "--shape x")


def test_a_package_that_cannot_be_imported_is_named(declared):
    declared(("square", "no_such_module:Square"))
    with pytest.raises(MachineError, match=r'"square".*cannot be imported.*no_such_module'):
        SHAPES.load("square")


def test_two_packages_with_one_name_are_an_error(declared):
    declared(("circle", "math:tau"), ("circle", "math:pi"))
    with pytest.raises(MachineError, match='"circle" is declared by'):
        SHAPES.load("circle")


@pytest.mark.parametrize("group", ["formats"])
def test_listing_our_own_names_imports_no_torch(group):
    code = (
        "import sys; from mnet_cli.system.plugins import ExtensionPoint\n"
        f"names = ExtensionPoint('mnet_cli.{group}', 'x').names()\n"
        "assert names, names\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
