"""Groups of 64-bit hashes that differ in few bits, found without comparing all with all.

Two hashes that differ in at most k bits agree in at least one of k + 1 bands into which the
bits are divided, so only hashes that share a band are compared (multi-index hashing: Norouzi,
Punjani and Fleet, "Fast search in Hamming space with multi-index hashing", CVPR 2012).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array  # type: ignore[import-untyped]
from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]

SMALL = 256  # hashes; so many are compared all with all, more are divided again
PLACES = np.uint64(1) << np.arange(64, dtype=np.uint64)

Indices = NDArray[np.intp]
Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class NearGroup:
    """Hashes that are connected by steps of few bits.

    Attributes:
        members: Their indices, ascending, (M,).
        bits: The fewest bits a step with which all of them are connected.
    """

    members: Indices
    bits: int


def near_groups(
    hashes: Hashes, most_bits: int, on_progress: Callable[[int, int], None] | None = None
) -> list[NearGroup]:
    """Find the connected components of hashes that differ in at most `most_bits` bits.

    One bit is tried first, then two, and so on. A bucket whose hashes fewer bits have joined
    already is not compared, so that many hashes that are nearly equal cost little. A large
    bucket is divided by its other bits, unless that would save no comparison; at worst each
    band compares each pair once. Memory grows with the number of hashes, not of pairs.

    Args:
        hashes: The hashes (N,).
        most_bits: Bits that may differ between neighbours, below 64.
        on_progress: Called with (done, total) bands.

    Returns:
        The components of two or more, by their first members.
    """
    if not len(hashes):
        return []
    distinct, which = np.unique(hashes, return_inverse=True)
    everything = np.arange(len(distinct))
    sets = _DisjointSets(len(distinct))
    report = _steps(on_progress, most_bits * (most_bits + 3) // 2)  # bits + 1 for each bits
    for bits in range(1, most_bits + 1):
        for band in _bands(distinct, everything, bits):
            _join_band(distinct, band, bits, sets)
            next(report)
    root = sets.roots(everything)[which]
    order = np.argsort(root, kind="stable")
    ends = np.flatnonzero(np.diff(root[order])) + 1
    groups = [group for group in np.split(order, ends) if len(group) > 1]
    found = [NearGroup(group, int(sets.bits[root[group[0]]])) for group in groups]
    return sorted(found, key=lambda group: int(group.members[0]))


class _DisjointSets:
    """Sets of N items that are joined, many pairs at a time.

    Attributes:
        bits: For the root of each set with how many bits it was last joined.
    """

    def __init__(self, count: int) -> None:
        self._parent = np.arange(count)
        self.bits = np.zeros(count, np.uint8)

    def roots(self, items: Indices) -> Indices:
        """The root of the set of each item; equal for items of the same set."""
        found = self._parent[items]
        while ((above := self._parent[found]) != found).any():
            found = above
        self._parent[items] = found
        return found

    def join(self, one: Indices, other: Indices, bits: int) -> None:
        """Make one set of the sets of `one[i]` and `other[i]`, for each i."""
        pairs = np.stack([self.roots(one), self.roots(other)])
        pairs = pairs[:, pairs[0] != pairs[1]]
        if not pairs.size:
            return
        roots, index = np.unique(pairs, return_inverse=True)
        row, column = index.reshape(pairs.shape)
        edges = coo_array((np.ones(len(row), bool), (row, column)), shape=(len(roots),) * 2)
        _, component = connected_components(edges, directed=False)
        _, first = np.unique(component, return_index=True)
        self._parent[roots] = roots[first][component]
        self.bits[roots[first]] = bits


@dataclass(frozen=True)
class _Band:
    """Hashes divided into buckets by some of their bits.

    Attributes:
        items: Indices of the hashes, bucket by bucket.
        starts: Where in `items` each bucket starts.
        sizes: Hashes of each bucket.
    """

    items: Indices
    starts: Indices
    sizes: Indices

    @property
    def pairs(self) -> int:
        """How many pairs of hashes share a bucket."""
        return int((self.sizes * (self.sizes - 1) // 2).sum())


def _bands(distinct: Hashes, items: Indices, bits: int) -> list[_Band]:
    """Divide hashes by each of `bits + 1` bands of the bits in which they are not all equal."""
    hashes = distinct[items]
    varying = np.bitwise_or.reduce(hashes ^ hashes[0])
    places = PLACES[PLACES & varying > 0]
    masks = [np.bitwise_or.reduce(band) for band in np.array_split(places, bits + 1)]
    return [_band(hashes & mask, items) for mask in masks]


def _band(keys: Hashes, items: Indices) -> _Band:
    order = np.argsort(keys)
    keys = keys[order]
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    return _Band(items[order], starts, np.diff(starts, append=len(items)))


def _join_band(distinct: Hashes, band: _Band, bits: int, sets: _DisjointSets) -> None:
    """Join the hashes of each bucket that differ in at most `bits` bits."""
    roots = sets.roots(band.items)
    apart = np.minimum.reduceat(roots, band.starts) != np.maximum.reduceat(roots, band.starts)
    large = band.sizes > SMALL
    for start, size in zip(
        band.starts[apart & large].tolist(), band.sizes[apart & large].tolist(), strict=True
    ):
        items = band.items[start : start + size]
        parts = _bands(distinct, items, bits)
        if sum(part.pairs for part in parts) < size * (size - 1) // 2:
            for part in parts:
                _join_band(distinct, part, bits, sets)
        else:
            _compare(distinct, items, np.full(size, size), bits, sets)
    small = apart & ~large
    ends = np.repeat(np.cumsum(band.sizes[small]), band.sizes[small])
    _compare(distinct, band.items[np.repeat(small, band.sizes)], ends, bits, sets)


def _compare(
    distinct: Hashes, items: Indices, ends: Indices, bits: int, sets: _DisjointSets
) -> None:
    """Compare each hash with those behind it in its bucket, which ends at `ends`."""
    hashes = distinct[items]
    here, ahead = np.arange(len(items)), 1
    while len(here := here[here + ahead < ends[here]]):
        near = here[np.bitwise_count(hashes[here] ^ hashes[here + ahead]) <= bits]
        sets.join(items[near], items[near + ahead], bits)
        ahead += 1


def _steps(on_progress: Callable[[int, int], None] | None, total: int) -> Iterator[None]:
    """Report one more step at each turn."""
    for done in range(1, total + 1):
        if on_progress:
            on_progress(done, total)
        yield
