"""What is wrong, or may be, with a folder of images; nothing on disk is changed."""

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mnet_cli.data.check import same_bytes
from mnet_cli.data.images import decode_image, read_bytes
from mnet_cli.data.paths import Files, Names
from mnet_cli.data.scan import SPLITS, ImageSet, scan_classes, scan_splits
from mnet_cli.errors import DataError
from mnet_cli.machine import cores

FORMAT_OF = {  # Pillow's name of the format that an extension promises
    ".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP",
    ".gif": "GIF", ".tif": "TIFF", ".tiff": "TIFF", ".ppm": "PPM",
}  # fmt: skip
TINY, HUGE = 64, 50_000_000  # pixels of the shorter side; pixels in all
NEAR = 4  # of the 64 bits of two perceptual hashes may differ
IMBALANCE = 10  # times more images in the largest class than in the smallest
ROWS = 2048  # of the comparison of all hashes with all, at a time

# A finding's kind, and whether training refuses such data or its scores cannot be trusted.
SERIOUS = {
    "unreadable": True,
    "class missing in a split": True,
    "same bytes in two classes": True,
    "same bytes in two splits": True,
    "near duplicates in two splits": False,
    "near duplicates": False,
    "same bytes": False,
    "extension of another format": False,
    "animated, first frame used": False,
    "tiny": False,
    "huge": False,
    "imbalance": False,
}


@dataclass(frozen=True)
class Finding:
    """Something to look at.

    Attributes:
        kind: A key of `SERIOUS`.
        paths: The images, below the root; empty where it is about a class.
        detail: What was seen.
    """

    kind: str
    paths: tuple[str, ...]
    detail: str


@dataclass(frozen=True)
class Health:
    """What was found in a folder.

    Attributes:
        root: The folder.
        images: Images of each class in each split.
        findings: In the order of `SERIOUS`.
    """

    root: Path
    images: dict[str, dict[str, int]]
    findings: list[Finding]

    @property
    def serious(self) -> list[Finding]:
        """Those that training refuses, or that make scores worthless."""
        return [finding for finding in self.findings if SERIOUS[finding.kind]]


@dataclass(frozen=True)
class _Look:
    """One image: digest of its bytes, perceptual hash, and findings about it alone."""

    sha256: bytes
    likeness: int
    findings: list[tuple[str, str]]


def examine(root: Path, on_progress: Callable[[int, int], None] | None = None) -> Health:
    """Look at every image below `root`, and at how the classes are filled.

    Args:
        root: A folder with `train/` and `val/` (and perhaps `test/`), or one of classes.
        on_progress: Called with (done, total) images.

    Raises:
        DataError: The folder holds no classes of images at all.
    """
    sets = _scan(root)
    paths = Names(
        (images.root.relative_to(root) / path).as_posix()
        for images in sets.values()
        for path in images.paths
    )
    names = [images.class_names[label] for images in sets.values() for label in images.labels]
    splits = np.repeat(list(sets), [len(images.labels) for images in sets.values()])
    sha256 = np.zeros((len(paths), 32), np.uint8)
    likeness = np.zeros(len(paths), np.uint64)
    usable = np.zeros(len(paths), bool)
    findings: list[Finding] = []
    with ThreadPoolExecutor(cores()) as pool:
        for index, look in enumerate(pool.map(_look, Files(root, paths))):
            sha256[index] = np.frombuffer(look.sha256, np.uint8)
            likeness[index] = look.likeness
            usable[index] = all(kind != "unreadable" for kind, _ in look.findings)
            findings += [Finding(kind, (paths[index],), text) for kind, text in look.findings]
            if on_progress:
                on_progress(index + 1, len(paths))
    places = list(zip(names, splits.tolist(), strict=True))
    same = [group for group in same_bytes(sha256) if sha256[group[0]].any()]
    findings += [_duplicates("same bytes", group, places, paths) for group in same]
    first = {index: group[0] for group in same for index in group}  # one of each stands for all
    single = usable & (
        np.asarray([first.get(i, i) for i in range(len(paths))]) == np.arange(len(paths))
    )
    for one, other, bits in _alike(likeness, np.flatnonzero(single)):
        found = _duplicates("near duplicates", [one, other], places, paths)
        findings.append(Finding(found.kind, found.paths, f"{bits} of 64 bits differ"))
    images = {split: _counts(images) for split, images in sets.items()}
    findings += _about_classes(images)
    order = list(SERIOUS)
    findings.sort(key=lambda finding: order.index(finding.kind))
    return Health(root, images, findings)


def _scan(root: Path) -> dict[str, ImageSet]:
    """The images of each split, whose classes may differ: that is to be found, not refused."""
    if (root / "train").is_dir() and (root / "val").is_dir():
        there = [split for split in SPLITS if (root / split).is_dir()]
        return {split: scan_classes(root / split, 1) for split in there}
    return scan_splits(root, 1)


def _look(path: Path) -> _Look:
    digest = bytes(32)
    try:
        content = read_bytes(path)
        digest = hashlib.sha256(content).digest()
        image = decode_image(content, str(path))
    except DataError as error:
        return _Look(digest, 0, [("unreadable", error.found)])
    bits = np.packbits(imagehash.phash(image).hash.ravel())
    likeness = int.from_bytes(bits.tobytes(), "big")
    return _Look(digest, likeness, list(_about_one(path, content, image)))


def _about_one(path: Path, content: bytes, image: Image.Image) -> Iterator[tuple[str, str]]:
    with Image.open(io.BytesIO(content)) as opened:
        kind = "JPEG" if opened.format == "MPO" else opened.format
        frames = getattr(opened, "n_frames", 1) if opened.format != "MPO" else 1
    suffix = PurePosixPath(path.name).suffix.lower()
    if kind != FORMAT_OF[suffix]:
        yield "extension of another format", f"{suffix} holds {kind}"
    if frames > 1:
        yield "animated, first frame used", f"{frames} frames"
    size = f"{image.width}x{image.height} pixels"
    if min(image.size) < TINY:
        yield "tiny", size
    if image.width * image.height > HUGE:
        yield "huge", size


def _duplicates(
    kind: str, group: Sequence[int], places: Sequence[tuple[str, str]], paths: Names
) -> Finding:
    """A group of images that are the same, with where that matters."""
    classes, splits = ({places[index][part] for index in group} for part in (0, 1))
    if kind == "same bytes" and len(classes) > 1:
        kind = "same bytes in two classes"
    elif len(splits) > 1:
        kind = f"{kind} in two splits"
    return Finding(kind, tuple(paths[index] for index in group), ", ".join(sorted(classes)))


def _alike(
    likeness: NDArray[np.uint64], chosen: NDArray[np.intp]
) -> Iterator[tuple[int, int, int]]:
    """Pairs of images whose hashes differ by `NEAR` bits or fewer, and by how many."""
    hashes = likeness[chosen]
    for start in range(0, len(hashes), ROWS):
        bits = np.bitwise_count(hashes[start : start + ROWS, None] ^ hashes[None, start:])
        rows, columns = np.nonzero(bits <= NEAR)
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            if column > row:
                one, other = chosen[start + row], chosen[start + column]
                yield int(one), int(other), int(bits[row, column])


def _counts(images: ImageSet) -> dict[str, int]:
    counts = Counter(images.class_names[label] for label in images.labels)
    return {name: counts[name] for name in images.class_names}


def _about_classes(images: dict[str, dict[str, int]]) -> Iterator[Finding]:
    every = sorted({name for counts in images.values() for name in counts})
    for split, counts in images.items():
        for name in every:
            if name not in counts:
                yield Finding("class missing in a split", (), f"{split} has no {name}")
    counts = images.get("train") or images["all"]
    most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
    if counts[most] > IMBALANCE * counts[least]:
        detail = f"{most} has {counts[most]} images, {least} has {counts[least]}"
        yield Finding("imbalance", (), f"{detail}; see data.balance")
