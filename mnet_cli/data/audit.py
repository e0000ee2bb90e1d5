"""What is wrong, or may be wrong, with a data set; nothing on disk is changed."""

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import PurePosixPath

import imagehash
import numpy as np
from PIL import Image

from mnet_cli.data.image_files import ImageFile
from mnet_cli.data.images import BROKEN, decode_image
from mnet_cli.data.near import near_groups
from mnet_cli.data.paths import Names
from mnet_cli.data.sources import open_source
from mnet_cli.data.sources.base import ImageSource
from mnet_cli.data.sources.classes import check_class_names
from mnet_cli.data.validate import same_bytes
from mnet_cli.errors import DataError
from mnet_cli.system.machine import cores

FORMAT_OF = {  # Pillow's name of the format that an extension promises
    ".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP",
    ".gif": "GIF", ".tif": "TIFF", ".tiff": "TIFF", ".ppm": "PPM",
}  # fmt: skip
TINY, HUGE = 64, 50_000_000  # pixels of the shorter side; pixels in all
NEAR = 4  # of the 64 bits of two perceptual hashes may differ
IMBALANCE = 10  # times more images in the largest class than in the smallest
BLOCK = 500  # images

Progress = Callable[[int, int], None]

# A finding's kind, and whether training refuses such data or its scores cannot be trusted.
SERIOUS = {
    "unreadable": True,
    "only one class": True,
    "unusable class names": True,
    "class without images": True,
    "split without classes": True,
    "class missing in train": True,
    "same bytes in two classes": True,
    "same bytes in two splits": True,
    "class missing in a split": False,
    "near duplicates in two classes": False,
    "near duplicates in two splits": False,
    "near duplicates": False,
    "same bytes": False,
    "extension of another format": False,
    "animated, first frame used": False,
    "tiny": False,
    "huge": False,
    "imbalance": False,
    "damaged beyond the first frame": False,
    "ignored": False,
}


@dataclass(frozen=True)
class Finding:
    """Something that the user should check.

    Attributes:
        kind: A key of `SERIOUS`.
        paths: Names of the images; empty for a finding about a class.
        detail: What was found.
    """

    kind: str
    paths: tuple[str, ...]
    detail: str


@dataclass(frozen=True)
class Audit:
    """What was found in a data set.

    Attributes:
        root: The data set.
        images: Images of each class in each split.
        findings: In the order of `SERIOUS`.
    """

    root: str
    images: dict[str, dict[str, int]]
    findings: list[Finding]

    @property
    def serious(self) -> list[Finding]:
        """The findings that training refuses, or that make scores meaningless."""
        return [finding for finding in self.findings if SERIOUS[finding.kind]]


@dataclass(frozen=True)
class _Examined:
    """One image: digest of its bytes, perceptual hash, and findings about it alone."""

    sha256: bytes
    phash: int
    findings: list[tuple[str, str]]


def examine(
    root: str, on_progress: Progress | None = None, on_comparing: Progress | None = None
) -> Audit:
    """Examine every image of a data set, and the number of images of each class.

    Args:
        root: A data set that any installed image source reads.
        on_progress: Called with (done, total) images.
        on_comparing: Called with (done, total) steps of the search for near duplicates.

    Raises:
        DataError: The data set cannot be read, or has no classes at all.
    """
    sources = open_source(root)
    paths = Names(name for source in sources.values() for name in source.names)
    names = [source.class_names[label] for source in sources.values() for label in source.labels]
    splits = np.repeat(list(sources), [len(source) for source in sources.values()])
    sha256 = np.zeros((len(paths), 32), np.uint8)
    phash = np.zeros(len(paths), np.uint64)
    usable = np.zeros(len(paths), bool)
    findings: list[Finding] = []
    with ThreadPoolExecutor(cores()) as pool:
        blocks = (
            pool.map(_examine_image, [source[i] for i in range(len(source))[start : start + BLOCK]])
            for source in sources.values()
            for start in range(0, len(source), BLOCK)
        )
        for index, image in enumerate(chain.from_iterable(blocks)):
            sha256[index] = np.frombuffer(image.sha256, np.uint8)
            phash[index] = image.phash
            usable[index] = all(kind != "unreadable" for kind, _ in image.findings)
            findings += [Finding(kind, (paths[index],), text) for kind, text in image.findings]
            if on_progress:
                on_progress(index + 1, len(paths))
    places = list(zip(names, splits.tolist(), strict=True))
    same = [group for group in same_bytes(sha256) if usable[group[0]]]
    findings += [_duplicates("same bytes", group, places, paths) for group in same]
    first = {index: group[0] for group in same for index in group}  # one of each stands for all
    single = usable & (
        np.asarray([first.get(i, i) for i in range(len(paths))]) == np.arange(len(paths))
    )
    chosen = np.flatnonzero(single)
    for near in near_groups(phash[chosen], NEAR, on_comparing):
        found = _duplicates("near duplicates", chosen[near.members].tolist(), places, paths)
        detail = (
            f"{len(near.members):,} images, neighbours differ in at most {near.bits} of 64 bits"
        )
        findings.append(replace(found, detail=detail))
    images = {split: _counts(source) for split, source in sources.items()}
    findings += chain.from_iterable(map(_about_names, sources.values()))
    findings += _about_classes(images)
    notes = [note for source in sources.values() for note in source.ignored]
    findings += [Finding("ignored", (), note) for note in notes if not note.endswith("hidden")]
    order = list(SERIOUS)
    findings.sort(key=lambda finding: order.index(finding.kind))
    return Audit(next(iter(sources.values())).root, images, findings)


def _examine_image(file: ImageFile) -> _Examined:
    digest = bytes(32)
    try:
        content = file.read()
        digest = hashlib.sha256(content).digest()
        image = decode_image(content, file.where)
    except DataError as error:
        return _Examined(digest, 0, [("unreadable", error.found)])
    bits = np.packbits(imagehash.phash(image).hash.ravel())
    phash = int.from_bytes(bits.tobytes(), "big")
    return _Examined(digest, phash, list(_about_one(file.name, content, image)))


def _about_one(name: str, content: bytes, image: Image.Image) -> Iterator[tuple[str, str]]:
    frames = 1
    with Image.open(io.BytesIO(content)) as opened:
        kind = "JPEG" if opened.format == "MPO" else opened.format
        try:
            frames = 1 if opened.format == "MPO" else getattr(opened, "n_frames", 1)
        except BROKEN as error:  # counting them reads them all
            yield "damaged beyond the first frame", str(error)
    suffix = PurePosixPath(name).suffix.lower()
    if kind != FORMAT_OF.get(suffix, kind):
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
    detail = ", ".join(sorted(classes))
    if len(splits) > 1:  # worse than another class: it makes the scores meaningless
        kind = f"{kind} in two splits"
    elif len(classes) > 1:
        kind = f"{kind} in two classes"
    return Finding(kind, tuple(paths[index] for index in group), detail)


def _counts(source: ImageSource) -> dict[str, int]:
    counts = np.bincount(source.labels, minlength=len(source.class_names)).tolist()
    return dict(zip(source.class_names, counts, strict=True))


def _about_names(source: ImageSource) -> Iterator[Finding]:
    try:
        check_class_names(source.place, source.class_names)
    except DataError as error:
        yield Finding("unusable class names", (), f"{error.where}: {error.found}")


def _about_classes(images: dict[str, dict[str, int]]) -> Iterator[Finding]:
    every = sorted({name for counts in images.values() for name in counts})
    for split, counts in images.items():
        if not counts:
            yield Finding("split without classes", (), f"{split} has no class folders")
            continue
        for name in every:
            if name not in counts:
                kind = "class missing in " + ("train" if split == "train" else "a split")
                yield Finding(kind, (), f"{split} has no {name}")
            elif not counts[name]:
                folder = name if split == "all" else f"{split}/{name}"
                yield Finding("class without images", (), f"{folder} has no usable image")
    if len(every) == 1:
        yield Finding("only one class", (), every[0])
    counts = {name: count for name, count in next(iter(images.values())).items() if count}
    if not counts:
        return
    most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
    if counts[most] > IMBALANCE * counts[least]:
        detail = f"{most} has {counts[most]} images, {least} has {counts[least]}"
        yield Finding("imbalance", (), f"{detail}; see data.balance")
