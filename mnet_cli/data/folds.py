"""Folds for cross-validation, so that the same photographs are never on both sides."""

import numpy as np
from numpy.typing import NDArray


def same_contents(sha256: NDArray[np.uint8]) -> NDArray[np.intp]:
    """The number of the group of each image, where images of the same bytes form a group.

    Args:
        sha256: Digests of the encoded bytes (N, 32).
    """
    _, groups = np.unique(sha256, axis=0, return_inverse=True)
    return groups.reshape(-1)


def assign_folds(
    labels: NDArray[np.int64],
    sha256: NDArray[np.uint8],
    groups: NDArray[np.intp],
    count: int,
    seed: int,
) -> NDArray[np.intp]:
    """Divide images into folds with about the same number of images of each class.

    The groups of a class take turns, the largest first, then by rank of their content. So the
    order of files does not matter. A group with images of several classes counts as one of its
    first class.

    Args:
        labels: The class of each image (N,).
        sha256: Digests of the encoded bytes (N, 32).
        groups: The group of each image (N,), counted from 0 without gaps; a group is never divided.
        count: Folds, at least 2.
        seed: Another seed gives other folds.

    Returns:
        The fold of each image (N,), 0 … `count` - 1.
    """
    odd = 2 * int(np.random.default_rng(seed).integers(2**63)) + 1  # a factor that loses no bits
    first = sha256[:, :8].copy().view(">u8").reshape(-1).astype(np.uint64)
    ranks = first * np.uint64(odd)  # modulo 2**64
    number = int(groups.max()) + 1
    rank, label = np.full(number, np.iinfo(np.uint64).max), np.full(number, labels.max())
    np.minimum.at(rank, groups, ranks)
    np.minimum.at(label, groups, labels)
    order = np.lexsort((rank, -np.bincount(groups), label))
    fold = np.empty(number, np.intp)
    fold[order] = np.arange(number) % count
    return fold[groups]
