"""Answers for images as Parquet files in a folder, to which a later call adds what is missing.

`_about.json` says what the answers are of, so that those of two networks are never mixed. Each part
appears complete. An image whose path is in a part is done, unless its row holds an error: then it
is tried again.
"""

import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mnet_cli.errors import DataError, UsageError
from mnet_cli.system.atomic import atomic_write, remove_leftovers, write_json
from mnet_cli.system.locks import lock_folder, refuse_other_files
from mnet_cli.system.text import printable

ABOUT, FORMAT = "_about.json", 1  # readers of Parquet folders leave such names out
PART = "part-{:05d}.parquet"
ROWS, SECONDS = 10_000, 60.0  # a part ends with so many rows, or after so long
VALUES = 2_000_000  # numbers in the rows that wait for their part

Row = dict[str, Any]


class PartsFolder:
    """A folder of parts; a context manager that locks it and writes the last part.

    Args:
        folder: New, empty, or of the same answers.
        about: What the answers depend on; plain values.
        schema: Of all rows, for pyarrow: `path`, the answer, and `error`.
        width: How many numbers there are in a row.

    Attributes:
        done: The paths of the images that are in a part.

    Raises:
        MachineError: The folder is in use, or cannot be written.
        UsageError: The folder holds something else.
        DataError: A part is damaged.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any], schema: Any, width: int) -> None:
        self.folder, self.about, self.schema = folder, {"format": FORMAT, **about}, schema
        self.done: set[str] = set()
        self._rows: list[Row] = []
        self._number, self._due = 0, 0.0
        self._most = max(1, min(ROWS, VALUES // max(1, width)))

    def __enter__(self) -> Self:
        refuse_other_files(self.folder, ABOUT)
        self._lock = lock_folder(self.folder)
        try:
            self._open()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.write()  # whatever has stopped it: the rows are right
        finally:
            self._lock.release()

    def add(self, row: Row) -> None:
        """Add the row of an image."""
        if not self._rows:
            self._due = time.monotonic() + SECONDS
        self._rows.append(row)
        if len(self._rows) >= self._most or time.monotonic() >= self._due:
            self.write()

    def write(self) -> None:
        """Write the rows that wait as a part."""
        import pyarrow as pa
        import pyarrow.parquet

        if not self._rows:
            return
        table = pa.Table.from_pylist(self._rows, schema=self.schema)
        with atomic_write(self.folder / PART.format(self._number)) as file:
            pyarrow.parquet.write_table(table, file)
        self._number += 1
        self._rows = []

    def _open(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet

        if not (self.folder / ABOUT).is_file():
            write_json(self.folder / ABOUT, self.about)
        self._refuse_other()
        remove_leftovers(self.folder, owned=True)
        for path in sorted(self.folder.glob("part-*.parquet")):
            try:
                table = pyarrow.parquet.read_table(path, columns=["path", "error"])
                if table["error"].null_count < len(table):
                    table = self._without_errors(path)
                done = table["path"].to_pylist()
            except (pa.ArrowException, OSError, KeyError) as error:
                reason = str(error).splitlines()[0]
                raise DataError(
                    printable(str(path)),
                    f"is damaged ({printable(reason, 200)})",
                    next_step="Remove it; its images are then done again",
                ) from error
            self.done.update(done)
            if found := re.fullmatch(r"part-(\d+)\.parquet", path.name):
                self._number = max(self._number, int(found[1]) + 1)

    def _without_errors(self, path: Path) -> Any:
        """Leave the rows with an error out of a part, and give the others."""
        import pyarrow.compute
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(path)
        table = table.filter(pyarrow.compute.is_null(table["error"]))
        if not len(table):
            path.unlink()
        else:
            with atomic_write(path) as file:
                pyarrow.parquet.write_table(table, file)
        return table

    def _refuse_other(self) -> None:
        try:
            stored = json.loads((self.folder / ABOUT).read_text(encoding="utf-8"))
            differences = [name for name in self.about if stored.get(name) != self.about[name]]
        except (OSError, ValueError, AttributeError) as error:
            raise DataError(
                printable(str(self.folder / ABOUT)),
                f"cannot be read ({type(error).__name__})",
                next_step="Choose another folder",
            ) from error
        if differences:
            raise UsageError(
                f"--out {printable(str(self.folder))}",
                f"holds answers that differ in {', '.join(differences)}",
                next_step="Choose another folder",
            )
