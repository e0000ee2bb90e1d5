"""Hashes of files and folders."""

import hashlib
from pathlib import Path


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, or of a folder's content, as 64 hex digits."""
    return folder_sha256(path) if path.is_dir() else file_sha256(path)


def folder_sha256(folder: Path) -> str:
    """SHA-256 of a folder's content, as 64 hex digits.

    It is that of a line for each file, sorted by path: its own hash, two spaces, its path with
    slashes; what `find * -type f | LC_ALL=C sort | xargs sha256sum | sha256sum` prints inside.
    """
    files = (path for path in folder.rglob("*") if path.is_file())
    names = sorted(path.relative_to(folder).as_posix() for path in files)
    lines = (f"{file_sha256(folder / name)}  {name}\n" for name in names)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
