"""Write a data set as shards: tar files in the layout of WebDataset, or Parquet files."""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol

import numpy as np
from PIL import Image

from mnet_cli.data.images import BROKEN, FORMATS, Photograph
from mnet_cli.data.paths import Names
from mnet_cli.data.sources import open_source
from mnet_cli.data.sources.base import ImageSource, SourceImage
from mnet_cli.data.sources.classes import check_classes
from mnet_cli.data.sources.folder import IMAGE_EXTENSIONS
from mnet_cli.data.sources.parquet import import_pyarrow
from mnet_cli.data.sources.rows import below_class
from mnet_cli.data.sources.shard_manifest import NAME, Shard, ShardManifest, read_manifest
from mnet_cli.data.sources.tar import CLASSES
from mnet_cli.errors import DataError, UsageError
from mnet_cli.system.atomic import atomic_write, remove_leftovers
from mnet_cli.system.hashing import file_sha256
from mnet_cli.system.locks import lock_folder, refuse_other_files
from mnet_cli.system.text import printable, readable
from mnet_cli.system.threads import in_threads
from mnet_cli.system.urls import is_url, without_credentials

QUALITY = 95  # of a JPEG that is made smaller; its colours keep the full resolution
TOGETHER = 4  # images that a thread reads at a time
GROUP = 100  # rows of a Parquet group, which can only be read whole

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class PackedImage:
    """What a shard holds of an image.

    Attributes:
        content: The encoded bytes.
        suffix: Of its format, such as `.jpg`.
        label: The index of its class.
        class_name: Its class.
        path: Its name below its split, such as `daisy/1.jpg`.
    """

    content: bytes
    suffix: str
    label: int
    class_name: str
    path: str


class ShardWriter(Protocol):
    """Writes the images of one shard into a file that is open."""

    def add(self, number: int, image: PackedImage) -> None:
        """Add an image; `number` is its place in its split."""

    def close(self) -> None:
        """Write what is left; the file stays open."""


class TarWriter:
    """A tar shard: `KEY.jpg` and `KEY.json` for each image, the same bytes every time."""

    def __init__(self, file: IO[bytes], class_names: Sequence[str]) -> None:
        del class_names  # they are in `classes.txt`
        self.tar = tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115

    def add(self, number: int, image: PackedImage) -> None:
        """As in `ShardWriter`."""
        about = {"label": image.class_name, "path": image.path}
        for suffix, content in ((image.suffix, image.content), (".json", _as_json(about))):
            member = tarfile.TarInfo(f"{number:09d}{suffix}")
            member.size = len(content)
            self.tar.addfile(member, io.BytesIO(content))

    def close(self) -> None:
        """As in `ShardWriter`."""
        self.tar.close()


class ParquetWriter:
    """A Parquet shard as Hugging Face `datasets` writes it."""

    def __init__(self, file: IO[bytes], class_names: Sequence[str]) -> None:
        import pyarrow as pa
        import pyarrow.parquet

        features = {
            "image": {"_type": "Image"},
            "label": {"names": list(class_names), "_type": "ClassLabel"},
        }
        image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        self.schema = pa.schema(
            [("image", image), ("label", pa.int64())],
            metadata={"huggingface": json.dumps({"info": {"features": features}})},
        )
        self.writer = pyarrow.parquet.ParquetWriter(file, self.schema)
        self.rows: list[dict[str, Any]] = []

    def add(self, number: int, image: PackedImage) -> None:
        """As in `ShardWriter`."""
        del number  # rows have an order
        about = {"bytes": image.content, "path": readable(image.path)}
        self.rows.append({"image": about, "label": image.label})
        if len(self.rows) == GROUP:
            self._write_group()

    def close(self) -> None:
        """As in `ShardWriter`."""
        if self.rows:
            self._write_group()
        self.writer.close()

    def _write_group(self) -> None:
        import pyarrow as pa

        self.writer.write_table(pa.Table.from_pylist(self.rows, schema=self.schema))
        self.rows = []


WRITERS: dict[str, Callable[[IO[bytes], Sequence[str]], ShardWriter]] = {
    "tar": TarWriter,
    "parquet": ParquetWriter,
}


@dataclass(frozen=True)
class PackResult:
    """What `pack` has done.

    Attributes:
        images: The number of images of each split.
        shards: How many shards the set has.
        bytes: Of all shards.
        fresh: How many of the shards this call has written.
    """

    images: dict[str, int]
    shards: int
    bytes: int
    fresh: int


def pack(
    root: str,
    folder: str | os.PathLike[str],
    kind: str,
    shard_bytes: int,
    size: int | None = None,
    on_progress: Progress | None = None,
) -> PackResult:
    """Write the images of a data set of any kind as shards.

    Shards are `SPLIT/shard-00000.tar` and so on; a set without splits has them in its folder. Each
    appears complete, and `manifest.json` then lists it with its digest. A call that was stopped is
    continued by the same call: finished shards stay if their digests are right. Images are in a
    random order that is always the same, for programs that read shards from start to end.

    Args:
        root: A path or URL; it is only read.
        folder: Where the shards go: new, empty, or of the same call.
        kind: A key of `WRITERS`.
        shard_bytes: A shard ends with the image that reaches this size.
        size: Make images smaller whose short side has more pixels, as JPEG of quality `QUALITY`;
            images with transparency stay as they are. None keeps the bytes of every image.
        on_progress: Called with (done, total) images.

    Raises:
        DataError: The data set cannot be read, or a shard has changed.
        UsageError: The destination holds something else, or lies in the data set.
        MachineError: It cannot be written, another process packs there, or an extra is missing.
    """
    destination = _checked(root, os.fspath(folder))
    if kind == "parquet":
        import_pyarrow("--format parquet")
    splits = check_classes(open_source(root), least_classes=1)
    class_names = next(iter(splits.values())).class_names
    packing = {
        "kind": kind,
        "shard_bytes": shard_bytes,
        "size": size,
        "quality": QUALITY if size else None,
        "images": {split: len(source) for split, source in splits.items()},
        "listing_sha256": _listing_sha256(splits),
    }
    with lock_folder(destination):
        manifest = _started(destination, packing)
        before = len(manifest.shards)
        if not manifest.complete:
            if kind == "tar":
                _write_classes(destination, class_names)
            report = _counted(on_progress, sum(map(len, splits.values())))
            for split, source in splits.items():
                _pack_split(destination, split, source, manifest, report)
            manifest = ShardManifest(packing, manifest.shards, complete=True)
            manifest.write(destination)
    return PackResult(
        images={split: len(source) for split, source in splits.items()},
        shards=len(manifest.shards),
        bytes=sum(shard.bytes for shard in manifest.shards),
        fresh=len(manifest.shards) - before,
    )


def _pack_split(
    destination: Path,
    split: str,
    source: ImageSource,
    manifest: ShardManifest,
    report: Iterator[None],
) -> None:
    """Write the shards of a split that are missing, and list each in the manifest."""
    finished = [shard for shard in manifest.shards if shard.split == split]
    number, place = len(finished), sum(shard.images for shard in finished)
    kind, shard_bytes = manifest.packing["kind"], manifest.packing["shard_bytes"]
    for _ in range(place):
        next(report)
    images = _images(source, split, place, manifest.packing["size"])
    folder = destination if split == "all" else destination / split
    folder.mkdir(exist_ok=True)
    remove_leftovers(folder, owned=True)
    for first in images:
        path, start, filled = folder / f"shard-{number:05d}.{kind}", place, 0
        with atomic_write(path) as file:
            writer = WRITERS[kind](file, source.class_names)
            for image in chain([first], images):
                writer.add(place, image)
                filled, place = filled + len(image.content), place + 1
                next(report)
                if filled >= shard_bytes:
                    break
            writer.close()
        manifest.shards.append(
            Shard(
                file=path.relative_to(destination).as_posix(),
                split=split,
                images=place - start,
                bytes=path.stat().st_size,
                sha256=file_sha256(path),
            )
        )
        manifest.write(destination)
        number += 1


def _images(source: ImageSource, split: str, start: int, size: int | None) -> Iterator[PackedImage]:
    """The images of a split in the order of its shards, from the `start`-th on."""
    order = np.random.default_rng(0).permutation(len(source))[start:]
    paths = _unique_paths(source, "" if split == "all" else f"{split}/")

    def read(images: list[SourceImage]) -> list[PackedImage]:
        return [_packed(image, paths[image.index], size) for image in images]

    return in_threads(read, (source[index] for index in order.tolist()), TOGETHER)


def _unique_paths(source: ImageSource, prefix: str) -> Names:
    """For each image its name below its split, which begins with its class, as readers take it.

    A second image of the same name gets a number.
    """
    taken: set[str] = set()

    def unique() -> Iterator[str]:
        for name, label in zip(source.names, source.labels.tolist(), strict=True):
            path = below_class(source.class_names[label], name.removeprefix(prefix))
            whole, number = PurePosixPath(path), 2
            while path in taken:
                path, number = str(whole.with_stem(f"{whole.stem}-{number}")), number + 1
            taken.add(path)
            yield path

    return Names(unique())


def _packed(image: SourceImage, path: str, size: int | None) -> PackedImage:
    content, label = image.read(), int(image.source.labels[image.index])
    suffix = PurePosixPath(image.name).suffix.lower()
    if suffix not in IMAGE_EXTENSIONS:
        suffix = _suffix_of(content)
    if size:
        content, suffix = shrink(content, suffix, image.where, size)
    name = image.source.class_names[label]
    return PackedImage(content, suffix, label, name, path)


def shrink(content: bytes, suffix: str, where: str, size: int) -> tuple[bytes, str]:
    """Make an image smaller, so that its short side has `size` pixels.

    It is stored upright, as JPEG; its colour profile stays. An image that is not larger, or has
    transparency, stays as it is.

    Args:
        content: The encoded bytes.
        suffix: Of its format.
        where: Its name in errors.
        size: In pixels.

    Returns:
        The encoded bytes, and the suffix of their format.

    Raises:
        DataError: It is not a usable image.
    """
    photograph = Photograph(content, where)
    width, height = photograph.size
    if min(width, height) <= size:
        return content, suffix
    with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
        if opened.has_transparency_data:
            return content, suffix
        profile = None if opened.mode == "CMYK" else opened.info.get("icc_profile")
    scale = size / min(width, height)
    smaller = photograph.decode().resize(
        (max(size, round(width * scale)), max(size, round(height * scale))),
        Image.Resampling.BICUBIC,
    )
    stored = io.BytesIO()
    smaller.save(stored, "JPEG", quality=QUALITY, subsampling=0, icc_profile=profile)
    return stored.getvalue(), ".jpg"


def _suffix_of(content: bytes) -> str:
    """The suffix of an image's format; `.jpg` where it is no image."""
    with suppress(*BROKEN), Image.open(io.BytesIO(content), formats=FORMATS) as image:
        format_name = image.format or ""
        for suffix, name in Image.registered_extensions().items():
            if name == format_name and suffix in IMAGE_EXTENSIONS:
                return suffix
    return ".jpg"


def _as_json(content: Any) -> bytes:
    return json.dumps(content).encode()


def _counted(on_progress: Progress | None, total: int) -> Iterator[None]:
    """Report one more image at each `next`."""
    for done in range(1, total + 1):
        if on_progress:
            on_progress(done, total)
        yield


def _listing_sha256(splits: dict[str, ImageSource]) -> str:
    """A digest of the names, classes, labels, sizes and times of change of all images.

    Sizes and times are those that the source knows without reading.
    """
    digest = hashlib.sha256()
    for split, source in splits.items():
        digest.update(_as_json([split, list(source.class_names), len(source)]))
        digest.update(source.labels.tobytes())
        for image in source:
            _, *state = image.stamp() or [None]
            digest.update(_as_json([image.name, state[:2]]))
    return digest.hexdigest()


def _checked(root: str, folder: str) -> Path:
    """The destination; it must be outside the data set, and no URL."""
    destination = Path(folder)
    if is_url(folder):
        raise UsageError(
            printable(without_credentials(folder)),
            "a set cannot be packed to a URL",
            next_step="Pack it into a folder, then copy that with the tool of your store",
        )
    if not is_url(root) and destination.resolve().is_relative_to(Path(root).resolve()):
        raise UsageError(
            printable(folder), "is inside the data set", next_step="Choose another destination"
        )
    refuse_other_files(destination, NAME)
    return destination


def _started(destination: Path, packing: dict[str, Any]) -> ShardManifest:
    """The manifest of an earlier call for the same set, its shards checked; else an empty one."""
    manifest = read_manifest(str(destination))
    if manifest is None:
        if (destination / NAME).exists():
            raise UsageError(
                printable(str(destination / NAME)),
                "was written by another program",
                next_step="Choose another destination",
            )
        manifest = ShardManifest(packing)
        manifest.write(destination)
        return manifest
    if manifest.packing != packing:
        names = [name for name in packing if manifest.packing.get(name) != packing[name]]
        raise UsageError(
            printable(str(destination)),
            f"holds another set ({', '.join(names)} differ{'s' * (len(names) == 1)})",
            next_step="Choose another destination, or pack the same set with the same options",
        )
    for shard in manifest.shards:
        path = destination / shard.file
        if not path.is_file() or file_sha256(path) != shard.sha256:
            raise DataError(
                printable(str(path)),
                f"{'has changed' if path.is_file() else 'is missing'} since it was packed",
                next_step=f"Remove the folder {printable(str(destination))}, then pack again",
            )
    return manifest


def _write_classes(destination: Path, class_names: Sequence[str]) -> None:
    """Write the list of the classes, in the order of the labels.

    Raises:
        DataError: A name cannot be a line of its own.
    """
    for name in class_names:
        if name.splitlines() != [name] or name != name.strip():
            raise DataError(
                f"class {printable(name)!r}",
                "its name begins or ends with a space, or has several lines",
                next_step="Rename it, or use --format parquet",
            )
    with atomic_write(destination / CLASSES, "w", errors="surrogateescape") as file:
        file.write("".join(f"{name}\n" for name in class_names))
