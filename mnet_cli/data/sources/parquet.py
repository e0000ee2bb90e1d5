"""The image source for Parquet files as Hugging Face `datasets` writes them.

The column `image` holds a struct of `bytes` and `path`, or bytes alone; `label` holds text or
numbers, whose names are in the metadata of the schema
(https://huggingface.co/docs/datasets/image_dataset). Rows can be read only together with all others
of their group, so a group is unpacked on the local disk when one of its images is needed.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import PurePosixPath
from typing import Any

from mnet_cli.data.image_files import Stamp
from mnet_cli.data.sources.packed import PackedSource
from mnet_cli.data.sources.rows import SPLITS, Rows, below_class
from mnet_cli.data.storage import StoredFile, StoredStream, list_files, read_unpacked
from mnet_cli.errors import DataError, MachineError
from mnet_cli.system.text import printable


class ParquetSource(PackedSource):
    """Images in Parquet files; the place of one is its file, row group and row there (N, 3)."""

    suffix = ".parquet"
    layout = (
        "Parquet files, such as ROOT/train/shard-00000.parquet or ROOT/data/train-00000.parquet, "
        "with the columns image and label"
    )

    @classmethod
    def find_splits(cls, root: str) -> dict[str, list[StoredFile]]:
        """See `PackedSource.find_splits`."""
        found: dict[str, list[StoredFile]] = {}
        for file in list_files(root, depth=2, suffix=cls.suffix):
            below = file.name[len(root.rstrip("/")) + 1 :]
            found.setdefault(_split_of(below), []).append(file)
        known = [split for split in ("train", "val", "test") if split in found]
        return {split: found[split] for split in known} or found

    @classmethod
    def read_rows(cls, root: str, files: Sequence[StoredFile], *, is_labelled: bool) -> Rows:
        """See `PackedSource.read_rows`."""
        rows = Rows()
        for number, file in enumerate(files):
            _add(rows, number, file, is_labelled=is_labelled)
        return rows

    def read(self, index: int) -> bytes:
        """Read an image from the group that it is in."""
        _, group, row = self.places[index].tolist()
        file = self.file_of(index)
        return read_unpacked(f"{file.key}-{group}", row, lambda: _images(file, group))

    def stamp(self, index: int) -> Stamp | None:
        """The place of the image, and the version of its file."""
        _, group, row = self.places[index].tolist()
        file = self.file_of(index)
        return f"{file.key} {group} {row}", file.size, 0, 0


def _split_of(name: str) -> str:
    """The split that the name of a file or of its folder begins with, or `all`."""
    for part in PurePosixPath(name).parts:
        for word, split in SPLITS.items():
            if part == word or part.startswith((f"{word}-", f"{word}.", f"{word}_")):
                return split
    return "all"


def _add(rows: Rows, number: int, file: StoredFile, *, is_labelled: bool) -> None:
    """Add the rows of a file to those of its split."""
    import pyarrow as pa

    with _Opened(file) as parquet:
        schema = parquet.schema_arrow
        kind = _kind_of_image(file, schema)
        names = _class_names(schema)
        columns = ["image.path"] if kind == "struct" else []
        if "label" in schema.names:
            columns.append("label")
        elif is_labelled:
            raise _without_column(file, schema, "label")
        start = 0
        for group in range(parquet.num_row_groups):
            table = parquet.read_row_group(group, columns=columns)
            count = parquet.metadata.row_group(group).num_rows
            labels: list[Any] = [None] * count
            if "label" in columns:
                labels = table["label"].to_pylist()
            paths: list[Any] = [None] * count
            if kind == "struct":
                paths = pa.compute.struct_field(table["image"], "path").to_pylist()
            for row, (label, path) in enumerate(zip(labels, paths, strict=True)):
                where = f"{printable(file.name)}, row {start + row}"
                if label is None and is_labelled:
                    raise DataError(where, "no label", next_step="Give each image a label")
                own = path or f"{PurePosixPath(file.name).stem}/{start + row}"
                name = "" if label is None else _class_name(where, label, names)
                rows.add(below_class(name, own) if name else own, name, number, group, row)
            start += count


def _kind_of_image(file: StoredFile, schema: Any) -> str:
    """How the column `image` holds an image: `struct` or `bytes`."""
    import pyarrow as pa

    if "image" not in schema.names:
        raise _without_column(file, schema, "image")
    kind = schema.field("image").type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return "bytes"
    names = [kind.field(n).name for n in range(kind.num_fields)] if pa.types.is_struct(kind) else []
    if "bytes" not in names or "path" not in names:
        raise DataError(
            printable(file.name),
            f"the column image is of the type {kind}",
            next_step="Give it bytes, or a struct of bytes and path, as Hugging Face datasets does",
        )
    return "struct"


def _without_column(file: StoredFile, schema: Any, column: str) -> DataError:
    return DataError(
        printable(file.name),
        f"has no column {column}; its columns are {printable(', '.join(schema.names))}",
        next_step="Name the columns image and label",
    )


def _class_names(schema: Any) -> list[str] | None:
    """The names of the classes in the metadata of a schema; None if there are none."""
    with suppress(ValueError, KeyError, TypeError):
        about = json.loads((schema.metadata or {})[b"huggingface"])
        names = about["info"]["features"]["label"]["names"]
        return [str(name) for name in names]
    return None


def _class_name(where: str, label: Any, names: list[str] | None) -> str:
    if names is None or isinstance(label, str):
        return str(label)
    if not isinstance(label, int) or not 0 <= label < len(names):
        raise DataError(
            where,
            f"the label {label}, but the schema names {len(names)} classes",
            next_step="Correct the label; the first class is number 0",
        )
    return names[label]


def _images(file: StoredFile, group: int) -> list[bytes]:
    """The images of a row group; empty where a row has none."""
    import pyarrow as pa

    with _Opened(file) as parquet:
        kind = _kind_of_image(file, parquet.schema_arrow)
        column = "image.bytes" if kind == "struct" else "image"
        table = parquet.read_row_group(group, columns=[column])
        images = table["image"]
        if kind == "struct":
            images = pa.compute.struct_field(images, "bytes")
        return [content or b"" for content in images.to_pylist()]


def import_pyarrow(where: str) -> Any:
    """The package that reads and writes Parquet.

    Args:
        where: What needs it, for the error.

    Raises:
        MachineError: It is not installed.
    """
    try:
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError as error:
        raise MachineError(
            where,
            "Parquet needs a package that is not installed",
            next_step='Run: pip install "mnet-cli[parquet]"',
        ) from error
    return pyarrow


class _Opened:
    """A Parquet file that is open for a block, with pyarrow's errors as mnet's."""

    def __init__(self, file: StoredFile) -> None:
        self.file = file

    def __enter__(self) -> Any:
        pyarrow = import_pyarrow(printable(self.file.name))
        try:
            self.parquet = pyarrow.parquet.ParquetFile(StoredStream(self.file))
        except (pyarrow.ArrowException, OSError) as error:
            raise self._damaged(error) from error
        return self.parquet

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        import pyarrow

        self.parquet.close()
        if isinstance(error, pyarrow.ArrowException | OSError):
            raise self._damaged(error) from error

    def _damaged(self, error: BaseException) -> DataError:
        reason = printable(str(error).splitlines()[0], 200)
        return DataError(
            printable(self.file.name),
            f"is cut, damaged or no Parquet file ({reason})",
            next_step="Copy or pack it again",
        )
