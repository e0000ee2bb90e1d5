"""The image source for tar shards in the layout of WebDataset.

A shard is a tar file without compression. Members with the same name up to the first dot of the
last part belong together: `key.jpg` is the image, `key.cls` or `key.json` its class
(https://github.com/webdataset/webdataset, "The WebDataset Format"). Headers are read once; where
each image begins is then kept in the cache, so that images are read at random.
"""

import json
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePosixPath

import platformdirs

from mnet_cli.data.image_files import Stamp
from mnet_cli.data.sources.folder import IMAGE_EXTENSIONS
from mnet_cli.data.sources.packed import PackedSource
from mnet_cli.data.sources.rows import SPLITS, Rows, below_class
from mnet_cli.data.storage import StoredFile, StoredStream, find_file, list_files
from mnet_cli.errors import DataError, MnetError
from mnet_cli.system.atomic import write_json
from mnet_cli.system.text import printable

FORMAT = 1  # of the indexes in the cache
READERS = 8  # shards whose headers are read at the same time
AHEAD = 1_000_000  # bytes that are read at once while headers are looked for
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
CLASSES = "classes.txt"


class TarSource(PackedSource):
    """Images in tar shards; the place of one is its shard, its first byte and its bytes (N, 3)."""

    suffix = ".tar"
    layout = (
        "tar shards, such as ROOT/train/shard-00000.tar and ROOT/val/shard-00000.tar, or "
        "ROOT/shards-00000.tar, with KEY.jpg and KEY.cls or KEY.json"
    )

    @classmethod
    def matches(cls, root: str) -> bool:
        """Whether `root` is a tar file, or a folder with tar files in it or in its splits."""
        return root.endswith(COMPRESSED) or super().matches(root)

    @classmethod
    def find_splits(cls, root: str) -> dict[str, list[StoredFile]]:
        """See `PackedSource.find_splits`.

        Raises:
            DataError: `root` is a compressed tar file.
        """
        if root.endswith(COMPRESSED):
            raise DataError(
                printable(root),
                "is compressed, so that its images cannot be read one by one",
                next_step="Unpack it to .tar: images are compressed already",
            )
        found: dict[str, list[StoredFile]] = {}
        for folder, split in SPLITS.items():
            if shards := list_files(f"{root.rstrip('/')}/{folder}", suffix=cls.suffix):
                found[split] = shards
        if not found and (shards := list_files(root, suffix=cls.suffix)):
            found["all"] = shards
        return found

    @classmethod
    def class_list(cls, root: str) -> list[str] | None:
        """The names of the classes in `classes.txt`, a line each; None without that file."""
        folder = root.rpartition("/")[0] if root.endswith(cls.suffix) else root.rstrip("/")
        file = find_file(f"{folder}/{CLASSES}" if folder else CLASSES)
        if file is None:
            return None
        text = file.read().decode("utf-8", "surrogateescape")
        return [line.strip() for line in text.splitlines() if line.strip()]

    @classmethod
    def read_rows(cls, root: str, files: Sequence[StoredFile], *, is_labelled: bool) -> Rows:
        """See `PackedSource.read_rows`."""
        rows, classes = Rows(), cls.class_list(root)
        with ThreadPoolExecutor(READERS) as pool:
            for number, index in enumerate(pool.map(_index, files)):
                _add(rows, number, index, classes, is_labelled=is_labelled)
        return rows

    def read(self, index: int) -> bytes:
        """Read an image from its shard."""
        _, start, size = self.places[index].tolist()
        return self.file_of(index).read(start, size)

    def stamp(self, index: int) -> Stamp | None:
        """The place of the image, and the version of its shard."""
        _, start, size = self.places[index].tolist()
        return f"{self.file_of(index).key} {start}", size, 0, 0


@dataclass(frozen=True)
class Index:
    """Where the images of a shard are.

    Attributes:
        shard: The file.
        keys: For each image the name of its member.
        labels: For each its class: a name, a number, or None where the shard does not say.
        paths: For each the name that it had before it was packed; None where that is not known.
        spans: For each its first byte and its number of bytes.
        ignored: Notes on what was skipped.
    """

    shard: StoredFile
    keys: list[str]
    labels: list[str | int | None]
    paths: list[str | None]
    spans: list[tuple[int, int]]
    ignored: list[str]


def _add(
    rows: Rows, number: int, index: Index, classes: list[str] | None, *, is_labelled: bool
) -> None:
    """Add the images of a shard to the rows of its split."""
    rows.ignored += index.ignored
    for key, label, path, span in zip(
        index.keys, index.labels, index.paths, index.spans, strict=True
    ):
        where = f"{index.shard.name}: {printable(key)}"
        if label is None and is_labelled:
            rows.ignored.append(f"{where}: no .cls or .json with its class")
            continue
        name = "" if label is None else _class_name(where, label, classes)
        # Keys are unique in their shard only.
        own = path or f"{PurePosixPath(index.shard.name).stem}/{key}"
        rows.add(below_class(name, own) if name else own, name, number, *span)


def _class_name(where: str, label: str | int, classes: list[str] | None) -> str:
    """The name of the class that a label means."""
    if isinstance(label, int) or (classes and label.isdecimal() and label not in classes):
        if classes is None:
            return str(label)
        if not 0 <= int(label) < len(classes):
            raise DataError(
                where,
                f"the label {label}, but {CLASSES} lists {len(classes)} classes",
                next_step=f"Correct the label or {CLASSES}; the first class is number 0",
            )
        return classes[int(label)]
    if classes and label not in classes:
        raise DataError(
            where,
            f'the class "{printable(label)}" is not in {CLASSES}',
            next_step=f"Correct the label, or add the class to {CLASSES}",
        )
    return label


def _index(shard: StoredFile) -> Index:
    """The index of a shard, from the cache where it is kept for this version of the shard."""
    path = platformdirs.user_cache_path("mnet") / "indexes" / f"{shard.key}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads(path.read_text(encoding="utf-8", errors="surrogateescape"))
        if content.pop("format") == FORMAT:
            return Index(shard, **content)
    index = _scan(shard)
    content = {name: value for name, value in vars(index).items() if name != "shard"}
    with suppress(OSError, MnetError):  # without it the shard is read again next time
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"format": FORMAT, **content})
    return index


def _scan(shard: StoredFile) -> Index:
    """Read the headers of a shard, and the small members beside its images.

    Raises:
        DataError: The shard is cut, damaged or compressed, or has an image twice.
    """
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, str | int] = {}
    paths: dict[str, str] = {}
    others = Counter[str]()
    try:
        stream = StoredStream(shard, AHEAD)
        for name, start, size in _members(stream):
            folder, _, base = name.rpartition("/")
            stem, dot, suffix = base.partition(".")
            if not stem or not dot:
                continue
            key, suffix = f"{folder}/{stem}" if folder else stem, f".{suffix.lower()}"
            if suffix in IMAGE_EXTENSIONS:
                if key in images:
                    raise DataError(
                        f"{shard.name}: {printable(name)}",
                        f"the key {printable(key)} has two images",
                        next_step="Give each image its own key",
                    )
                images[key] = name, start, size
            elif suffix == ".cls":
                text = _content(stream, start, size)
                labels[key] = _label(text.decode("utf-8", "surrogateescape").strip())
            elif suffix == ".json":
                about = json.loads(_content(stream, start, size))
                if isinstance(about, dict):
                    if isinstance(about.get("label"), str | int):
                        labels.setdefault(key, about["label"])
                    if isinstance(about.get("path"), str):
                        paths[key] = about["path"]
            else:
                others[suffix] += 1
    except (tarfile.TarError, ValueError) as error:
        raise DataError(
            printable(shard.name),
            f"is cut or damaged ({printable(str(error))})",
            next_step="Copy or pack it again",
        ) from error
    return Index(
        shard,
        keys=[name for name, _, _ in images.values()],
        labels=[labels.get(key) for key in images],
        paths=[paths.get(key) for key in images],
        spans=[(start, size) for _, start, size in images.values()],
        ignored=[
            f"{shard.name}: {count} members {printable(suffix)}: unsupported format"
            for suffix, count in sorted(others.items())
        ],
    )


def _label(text: str) -> str | int:
    return int(text) if text.isdecimal() else text


def _content(stream: StoredStream, start: int, size: int) -> bytes:
    stream.seek(start)
    return stream.read(size)


def _members(stream: StoredStream) -> Iterator[tuple[str, int, int]]:
    """The name, first byte and size of each file in a shard, in their order.

    Raises:
        tarfile.TarError: It is no tar file, or is cut.
    """
    place, length = 0, stream.file.size
    while True:
        header = _content(stream, place, tarfile.BLOCKSIZE)
        if not header.strip(b"\0"):
            break
        plain = _plain_file(header)
        if plain is None:  # a long name, a link, a folder
            yield from _other_members(stream, place)
            return
        name, size = plain
        start = place + tarfile.BLOCKSIZE
        place = start + -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        if place > length:
            raise tarfile.ReadError(f"{name} ends after the end of the file")
        yield name, start, size
    if len(header) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("the end is missing")


def _plain_file(header: bytes) -> tuple[str, int] | None:
    """The name and size in the header of a regular file (POSIX.1-1988, ustar); None of another.

    `tarfile` takes ten times as long, and nearly all headers are such.
    """
    if len(header) < tarfile.BLOCKSIZE or header[156:157] not in (b"0", b"\0"):
        return None
    try:
        total, size = (int(header[a:b].strip(b" \0"), 8) for a, b in ((148, 156), (124, 136)))
    except ValueError:
        return None
    if total != sum(header) - sum(header[148:156]) + 8 * ord(" "):
        return None
    name = header[:100].rstrip(b"\0")
    if header[257:265] == b"ustar\x0000" and (prefix := header[345:500].rstrip(b"\0")):
        name = prefix + b"/" + name
    return name.decode("utf-8", "surrogateescape"), size


def _other_members(stream: StoredStream, place: int) -> Iterator[tuple[str, int, int]]:
    """As `_members`, from `place` on, for every kind of header that `tarfile` knows."""
    stream.seek(place)
    with tarfile.open(fileobj=stream, mode="r:", errorlevel=1) as tar:
        while True:
            stream_place = tar.offset
            member = tar.next()
            if member is None:
                break
            end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            if end > stream.file.size:
                raise tarfile.ReadError(f"{member.name} ends after the end of the file")
            if member.isfile():
                yield member.name, member.offset_data, member.size
            tar.members.clear()  # type: ignore[attr-defined]  # they would fill the memory
        rest = _content(stream, stream_place, tarfile.BLOCKSIZE)
        if len(rest) < tarfile.BLOCKSIZE or rest.strip(b"\0"):
            raise tarfile.ReadError("the end is missing")
