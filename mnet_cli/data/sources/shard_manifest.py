"""The list of shards that `mnet data pack` keeps beside them.

`manifest.json` names every shard with its number of images, its bytes and its SHA-256, so that a
set that is not whole is noticed before it is used.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mnet_cli.data.storage import StoredFile, find_file
from mnet_cli.errors import DataError
from mnet_cli.system.atomic import write_json
from mnet_cli.system.text import printable

NAME = "manifest.json"
FORMAT = 1


@dataclass(frozen=True)
class Shard:
    """A finished shard.

    Attributes:
        file: Its path below the set.
        split: Of its images.
        images: Their number.
        bytes: Of the file.
        sha256: Of the file, as 64 hex digits.
    """

    file: str
    split: str
    images: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardManifest:
    """What is known of a packed set.

    Attributes:
        packing: How the set is packed, and what of; plain values.
        shards: Those that are finished, in order.
        complete: Whether these are all.
    """

    packing: dict[str, Any]
    shards: list[Shard] = field(default_factory=list)
    complete: bool = False

    def write(self, folder: Path) -> None:
        """Write the manifest of the set in `folder`, atomically."""
        write_json(folder / NAME, {"format": FORMAT, **asdict(self)})


def read_manifest(root: str) -> ShardManifest | None:
    """The manifest of the set at a path or URL; None if it has none, or one of another program.

    Raises:
        DataError: It was written by a newer version.
    """
    file = find_file(f"{root.rstrip('/')}/{NAME}")
    if file is None:
        return None
    try:
        content = json.loads(file.read())
        if "packing" not in content or "shards" not in content:
            return None
        if content.pop("format") == FORMAT:
            shards = [Shard(**shard) for shard in content.pop("shards")]
            return ShardManifest(shards=shards, **content)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    raise DataError(
        printable(file.name),
        "was written by a newer version of mnet",
        next_step="Update mnet, or remove this file",
    )


def check_shards(root: str, files: Sequence[StoredFile]) -> None:
    """Compare the files of a set with its manifest, if it has one; they are not read.

    Raises:
        DataError: The set is not packed to its end, or a shard is missing or has another size.
    """
    manifest = read_manifest(root)
    if manifest is None:
        return
    if not manifest.complete:
        raise DataError(
            printable(root),
            "is not packed to its end",
            next_step='Run the same "mnet data pack" again',
        )
    prefix = len(root.rstrip("/")) + 1
    sizes = {file.name[prefix:]: file.size for file in files}
    for shard in manifest.shards:
        found = sizes.get(shard.file)
        if found != shard.bytes:
            state = "is missing" if found is None else f"has {found:,} bytes"
            raise DataError(
                printable(f"{root}/{shard.file}"),
                f"{state}, but {NAME} lists it with {shard.bytes:,}",
                next_step="Copy it again, or pack the set again",
            )
