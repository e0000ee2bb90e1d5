"""Groups of near hashes: the same as by comparing all with all, with far fewer comparisons."""

import numpy as np
import pytest
from scipy.sparse.csgraph import connected_components

from mnet_cli.data import near
from mnet_cli.data.near import near_groups


def flip(hashes, times, rng):
    """Flip a bit of each hash, some times over; the same bit may be flipped back."""
    for _ in range(times):
        hashes = hashes ^ (np.uint64(1) << rng.integers(0, 64, len(hashes), np.uint64))
    return hashes


def random(count, bits, rng):
    return rng.integers(0, (1 << bits) - 1, count, np.uint64, endpoint=True)


def by_all_pairs(hashes, most_bits):
    """Members of each group, and the fewest bits that hold it together."""
    differ = np.bitwise_count(hashes[:, None] ^ hashes[None])
    labels = [
        connected_components(differ <= bits, directed=False)[1] for bits in range(most_bits + 1)
    ]
    groups = [np.flatnonzero(labels[-1] == label) for label in np.unique(labels[-1])]
    return sorted(
        (group.tolist(), next(b for b, label in enumerate(labels) if np.ptp(label[group]) == 0))
        for group in groups
        if len(group) > 1
    )


@pytest.mark.parametrize("small", [256, 8, 2])
@pytest.mark.parametrize("kind", ["random", "few bits vary", "clusters"])
def test_groups_equal_those_of_all_pairs(kind, small, monkeypatch):
    monkeypatch.setattr(near, "SMALL", small)
    rng = np.random.default_rng(0)
    joined = 0
    for count in (1, 2, 50, 300, 300, 300):
        if kind == "clusters":
            centres = random(6, 64, rng)
            hashes = flip(centres[rng.integers(0, 6, count)], int(rng.integers(0, 9)), rng)
        else:
            hashes = random(count, 64 if kind == "random" else int(rng.integers(6, 30)), rng)
        found = [(group.members.tolist(), group.bits) for group in near_groups(hashes, 4)]
        assert found == by_all_pairs(hashes, 4)
        joined += len(found)
    assert (joined > 0) == (kind != "random")


def test_without_hashes_there_are_no_groups():
    assert near_groups(np.zeros(0, np.uint64), 4) == []


@pytest.mark.parametrize(
    ("kind", "share"), [("random", 0.02), ("two scenes", 0.02), ("27 bits are equal", 0.05)]
)
def test_few_pairs_are_compared(kind, share, monkeypatch):
    rng = np.random.default_rng(0)
    hashes = {
        "random": random(20_000, 64, rng),
        "two scenes": flip(random(2, 64, rng)[rng.integers(0, 2, 20_000)], 3, rng),
        "27 bits are equal": random(20_000, 37, rng),
    }[kind]
    compared, real = 0, np.bitwise_count

    def counting(bits):
        nonlocal compared
        compared += bits.size
        return real(bits)

    monkeypatch.setattr(np, "bitwise_count", counting)
    near_groups(hashes, 4)
    assert 0 < compared < share * len(hashes) ** 2 / 2


def test_progress_reaches_its_total():
    seen = []
    near_groups(random(100, 64, np.random.default_rng(0)), 4, lambda *step: seen.append(step))
    assert seen == [(done, 14) for done in range(1, 15)]
