"""The image source for manifests: a CSV or JSON-lines file with a row for each image.

The columns, or keys, are `path` and `label`, and perhaps `split` (train, val or test). A path is
relative to the manifest, absolute, or a URL.
"""

import csv
import io
import json
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit

from mnet_cli.data.image_files import ImageFile, Stamp, image_at
from mnet_cli.data.paths import Names
from mnet_cli.data.sources.base import ImageSource
from mnet_cli.data.sources.rows import SPLITS, Rows, class_names_of
from mnet_cli.data.storage import find_file
from mnet_cli.errors import DataError
from mnet_cli.system.text import printable
from mnet_cli.system.urls import is_url, refuse_credentials

SUFFIXES = (".csv", ".jsonl", ".ndjson")


@dataclass(frozen=True, eq=False, kw_only=True)
class ManifestSource(ImageSource):
    """Images that a manifest lists.

    Attributes:
        paths: For each image its path or URL.
    """

    paths: Names

    layout = "a .csv or .jsonl file with path, label and perhaps split"

    @classmethod
    def matches(cls, root: str) -> bool:
        """Whether `root` has the suffix of a manifest."""
        return root.lower().endswith(SUFFIXES)

    @classmethod
    def open(cls, root: str) -> dict[str, Self]:
        """Read the rows of a manifest; see `ImageSource.open`."""
        splits: dict[str, Rows] = {}
        paths: list[str] = []
        for number, row in enumerate(_rows(root)):
            where = f"{root}, row {number + 1}"
            for column in ("path", "label"):
                if not row.get(column):
                    raise DataError(printable(where), f"no {column}", next_step=f"Use {cls.layout}")
            named = str(row.get("split") or "all")
            if named != "all" and named not in SPLITS:
                raise DataError(
                    printable(where),
                    f'unknown split "{printable(named)}"',
                    next_step=f"Use one of {', '.join(SPLITS)}, or leave the column out",
                )
            path, label = str(row["path"]), str(row["label"])
            refuse_credentials(path, printable(where))
            splits.setdefault(SPLITS.get(named, "all"), Rows()).add(path, label, number)
            paths.append(_resolved(root, path))
        if not splits:
            raise DataError(printable(root), "lists no images", next_step=f"Use {cls.layout}")
        if "all" in splits and len(splits) > 1:
            raise DataError(
                printable(root),
                "some rows have a split and others have none",
                next_step="Give a split in each row, or in none",
            )
        names = class_names_of(splits)
        order = [split for split in ("train", "val", "test", "all") if split in splits]
        return {split: cls._of(root, split, splits[split], names, paths) for split in order}

    @classmethod
    def _of(
        cls, root: str, split: str, rows: Rows, class_names: list[str], paths: list[str]
    ) -> Self:
        fields = rows.arranged(root, "all", class_names)
        fields["place"] = root if split == "all" else f"{root}, {split}"
        order = fields.pop("places")[:, 0].tolist()
        return cls(**fields, paths=Names(paths[row] for row in order))

    @classmethod
    def unlabelled(cls, root: str) -> Iterator[ImageFile]:
        """See `ImageSource.unlabelled`."""
        for number, row in enumerate(_rows(root)):
            if not row.get("path"):
                raise DataError(
                    printable(f"{root}, row {number + 1}"), "no path", next_step=f"Use {cls.layout}"
                )
            refuse_credentials(str(row["path"]), printable(f"{root}, row {number + 1}"))
            yield image_at(_resolved(root, str(row["path"])))

    def read(self, index: int) -> bytes:
        """Read an image file."""
        return image_at(self.paths[index]).read()

    def where(self, index: int) -> str:
        """The path or URL of an image."""
        return self.paths[index]

    def stamp(self, index: int) -> Stamp | None:
        """See `file_stamp`; None for a URL."""
        return image_at(self.paths[index]).stamp()


def _resolved(root: str, path: str) -> str:
    """Where a path of a manifest leads."""
    if is_url(path):
        return path
    if is_url(root):
        parts = urlsplit(root)
        joined = posixpath.join(posixpath.dirname(parts.path), path)
        return urlunsplit((parts.scheme, parts.netloc, posixpath.normpath(joined), "", ""))
    return str(Path(root).parent / path)


def _rows(root: str) -> Iterator[Mapping[str, Any]]:
    """The rows of a manifest.

    Raises:
        DataError: It is missing, no text, or not of that form.
    """
    file = find_file(root)
    if file is None:
        raise DataError(printable(root), "does not exist", next_step="Check its name")
    try:
        text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            printable(root), f"is not UTF-8 (byte {error.start:,})", next_step="Save it as UTF-8"
        ) from error
    yield from _csv_rows(root, text) if root.lower().endswith(".csv") else _json_rows(root, text)


def _csv_rows(root: str, text: str) -> Iterator[Mapping[str, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = reader.fieldnames or []
        if "path" not in columns:
            raise DataError(
                printable(root),
                f"has no column path; its columns are {printable(', '.join(columns)) or 'none'}",
                next_step="Put path,label or path,label,split in the first line",
            )
        for row in reader:
            if None in row:  # DictReader's key of what is too much
                raise DataError(
                    f"{printable(root)}, line {reader.line_num}",
                    f"has more fields than the {len(columns)} columns",
                    next_step="Put names with commas in double quotes",
                )
            yield row
    except csv.Error as error:
        raise DataError(
            f"{printable(root)}, line {reader.line_num}",
            f"is not CSV ({error})",
            next_step="Put names with commas or quotes in double quotes, and double their quotes",
        ) from error


def _json_rows(root: str, text: str) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{printable(root)}, line {number}",
                f"is not JSON ({printable(str(error))})",
                next_step='Write one object a line, as {"path": "1.jpg", "label": "daisy"}',
            ) from error
        if not isinstance(row, dict):
            raise DataError(
                f"{printable(root)}, line {number}",
                "is not a JSON object",
                next_step='Write one object a line, as {"path": "1.jpg", "label": "daisy"}',
            )
        yield row
