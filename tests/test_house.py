"""The house rules that a machine can check: who may import whom, and how large rooms are."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "mnet_cli"

LADDER = (  # a room imports only rooms of a lower rung; a folder is one room
    ("errors", "text"),
    (
        "atomic",
        "hashing",
        "interrupts",
        "machine",
        "metrics",
        "models.layers",
        "models.published",
        "data.images",
        "data.near",
        "data.paths",
        "data.preprocess",
    ),
    (
        "recipe",
        "console",
        "download",
        "tensorfile",
        "models.mobilenet_v1",
        "models.mobilenet_v2",
        "models.mobilenet_v3",
        "models.onnx_forward",
        "run_directory",
        "contract",
        "own_files",
        "data.scan",
        "data.augment",
    ),
    (
        "models.registry",
        "models.onnx_graph",
        "models.freeze",
        "data.check",
        "data.inference",
        "data.split",
        "data.loaders",
        "data.sample",
        "data.flower_photos",
    ),
    (
        "models.weights",
        "models.forward",
        "models.summary",
        "checkpoint",
        "data.dataset",
        "data.doctor",
    ),
    ("features", "runtimes"),
    ("evaluate", "predict", "timing"),
    ("train", "report", "export"),
    ("cli",),
)
RUNG = {room: rung for rung, rooms in enumerate(LADDER) for room in rooms}
FREE = ("__init__", "__main__", "models", "data")  # names without code of their own


def room_of(module: str) -> str:
    """The ladder's name for a dotted module below mnet_cli."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] in ("models", "data") and parts[1:] else parts[0]


def imports_of(path: Path) -> set[str]:
    """Modules of mnet_cli that a file imports anywhere, functions included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("mnet_cli.") for name in found if name.startswith("mnet_cli.")}


def rooms() -> list[tuple[str, Path]]:
    """Every source file with the ladder's name for its room."""
    files = [path for path in PACKAGE.rglob("*.py") if path.stat().st_size]
    dotted = [".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in files]
    return [
        (room_of(name.removesuffix(".__init__")), path)
        for name, path in zip(dotted, files, strict=True)
    ]


def test_every_room_stands_on_the_ladder():
    strangers = {room for room, _ in rooms()} - RUNG.keys() - set(FREE)
    assert not strangers


def test_rooms_import_only_from_lower_rungs():
    climbing = []
    for room, path in rooms():
        if room in FREE:
            continue
        for target in {room_of(name) for name in imports_of(path)} & RUNG.keys():
            if target != room and RUNG[target] >= RUNG[room]:
                climbing.append(f"{path.name}: {room} imports {target}")
    assert not climbing


def test_the_command_line_and_the_recipe_load_no_torch():
    light = ("cli", "recipe", "console", "errors", "atomic", "download", "contract", "data.images")
    for room in light:
        for path in [path for name, path in rooms() if name == room]:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            top = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
            names = {a.name for n in top if isinstance(n, ast.Import) for a in n.names}
            names |= {n.module or "" for n in top if isinstance(n, ast.ImportFrom)}
            assert not {n for n in names if n.split(".")[0] in ("torch", "torchvision")}, path


def test_torch_loads_plain_tensors_only():
    bare = []
    for _, path in rooms():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                asked = {word.arg: ast.unparse(word.value) for word in node.keywords}
                if asked.get("weights_only") != "True":
                    bare.append(f"{path.name}:{node.lineno}")
    assert not bare
