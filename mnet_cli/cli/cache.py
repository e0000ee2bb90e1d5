"""`mnet cache`."""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from mnet_cli.cli import console

if TYPE_CHECKING:
    from mnet_cli.features.cache import CachedFolder


def show_cache() -> None:
    """List what is kept of frozen parts of networks, the last used first."""
    from mnet_cli.features.cache import cache_cap, cache_folders, cache_root

    folders = cache_folders()
    document = {
        "folder": cache_root(),
        "bytes": sum(folder.size for folder in folders),
        "cap_bytes": cache_cap(),
        "stores": [
            {
                "folder": folder.path.name,
                "bytes": folder.size,
                "used": _time(folder.used),
                "about": folder.about,
            }
            for folder in folders
        ],
    }
    console.show(document, lambda: _show(document, folders))


def clear() -> None:
    """Remove all kept activations; the next training computes them again."""
    from mnet_cli.features.cache import cache_root, clear_cache

    freed = clear_cache()
    console.show(
        {"folder": cache_root(), "freed_bytes": freed},
        lambda: console.line(f"cleared: {cache_root()}, {freed / 1e6:,.1f} MB"),
    )


def _show(document: Mapping[str, Any], folders: "list[CachedFolder]") -> None:
    if folders:
        console.table(
            ("network", "views", ">pixels", ">bytes a view", ">MB", "last used"),
            [
                (
                    _of(folder.about, "network", "title"),
                    _of(folder.about, "augmentation", "policy"),
                    _of(folder.about, "preprocess", "image_size"),
                    _of(folder.about, "row_bytes"),
                    f"{folder.size / 1e6:,.1f}",
                    _time(folder.used),
                )
                for folder in folders
            ],
        )
    console.line(
        f"{document['folder']}: {document['bytes'] / 1e6:,.1f} MB "
        f"of at most {document['cap_bytes'] / 1e9:g} GB (MNET_CACHE_GB)"
    )


def _of(about: Mapping[str, Any], *keys: str) -> Any:
    """A value of a store's description; `?` where the description is not whole."""
    value: Any = about
    for key in keys:
        value = value.get(key, "?") if isinstance(value, dict) else "?"
    return value


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).isoformat(sep=" ", timespec="minutes")
