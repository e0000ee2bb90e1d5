"""What modules may import at the top; which package may import which is in pyproject.toml."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "mnet_cli"
LIGHT = (
    "__init__.py",
    "api.py",
    "cli",
    "recipe",
    "system",
    "errors.py",
    "data/images.py",
    "formats/contract.py",
)


def sources(place: str = "") -> list[Path]:
    path = PACKAGE / place
    return [path] if path.suffix else sorted(path.rglob("*.py"))


def test_the_command_line_and_the_recipe_load_no_torch():
    heavy = []
    for path in [path for place in LIGHT for path in sources(place)]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        top = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
        names = {a.name for n in top if isinstance(n, ast.Import) for a in n.names}
        names |= {n.module or "" for n in top if isinstance(n, ast.ImportFrom)}
        if path.name != "tensorfile.py" and {n.split(".")[0] for n in names} & {
            "torch",
            "torchvision",
        }:
            heavy.append(path.name)
    assert not heavy


def test_torch_loads_plain_tensors_only():
    bare, calls = [], 0
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                calls += 1
                asked = {word.arg: ast.unparse(word.value) for word in node.keywords}
                if asked.get("weights_only") != "True":
                    bare.append(f"{path.name}:{node.lineno}")
    assert calls
    assert not bare
