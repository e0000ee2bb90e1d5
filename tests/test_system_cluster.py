"""Work on a Ray cluster of two nodes on this machine."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from mnet_cli.cli import run
from mnet_cli.system.cluster import connected, map_on_cluster

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("default"),  # Ray's own
]
CPUS = 3  # of a node; with one, tasks and workers wait for each other


@pytest.fixture(scope="module")
def cluster():
    """A cluster of two nodes; `cluster.address` is what `--ray` takes."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_health_check_period_ms", "1000")
        patch.setenv("RAY_health_check_failure_threshold", "3")
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": CPUS})
        made.second = made.add_node(num_cpus=CPUS)
        made.wait_for_nodes()
        yield made
        made.shutdown()


@pytest.fixture
def trained(tiny_recipe, tmp_path):
    out = tmp_path / "run"
    fast = ["--set", "train.epochs=1"]
    assert run(["train", str(tiny_recipe), *fast, "--out", str(out)]) == 0
    return out


@pytest.fixture
def pictures(photos, tmp_path):
    """Photographs, one of them bad."""
    shutil.copytree(photos, tmp_path / "pictures")
    (tmp_path / "pictures" / "val" / "red" / "bad.jpg").write_bytes(b"no image")
    return tmp_path / "pictures"


def table_of(folder):
    rows = pyarrow.parquet.read_table(folder).to_pylist()
    assert len({row["path"] for row in rows}) == len(rows)
    return {row["path"]: row for row in rows}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for path, row in expected.items():
        other = found[path]
        assert (other.get("class"), other["error"]) == (row.get("class"), row["error"])
        if row["error"] is None:
            values = "vector" if "vector" in row else "probs"
            one, two = row[values], other[values]
            if values == "probs":
                one, two = list(one.values()), list(two.values())
            assert np.allclose(one, two, rtol=0, atol=1e-6)


@pytest.mark.parametrize("command", ["predict", "embed"])
def test_a_cluster_writes_the_rows_of_the_local_command(
    cluster, trained, pictures, tmp_path, command
):
    local, remote = tmp_path / "local", tmp_path / "remote"
    options = [command, str(pictures), "-c", str(trained)]
    assert run([*options, "--out", str(local)]) == 3
    assert run([*options, "--out", str(remote), "--ray", cluster.address]) == 3
    expected = table_of(local)
    assert len(expected) == 37
    assert_same(table_of(remote), expected)
    # Again, after a part is lost: what is missing is computed.
    shutil.rmtree(remote)
    assert run([*options[:1], str(pictures / "val"), *options[2:], "--out", str(remote)]) == 3
    assert run([*options, "--out", str(remote), "--ray", cluster.address]) == 3
    assert_same(table_of(remote), expected)


def test_eval_on_a_cluster_gives_the_local_scores(cluster, trained, photos, capsys):
    capsys.readouterr()
    documents = []
    for options in ([], ["--ray", cluster.address]):
        assert run(["eval", str(photos), "-c", str(trained), "--json", *options]) == 0
        documents.append(json.loads(capsys.readouterr().out))
    assert documents[0]["confusion"] == documents[1]["confusion"]
    assert documents[0]["loss"] == pytest.approx(documents[1]["loss"], abs=1e-6)


@pytest.mark.parametrize("freeze", ["features", "features[:3]"])
def test_training_finds_what_a_cluster_has_computed(
    cluster, tiny_recipe, tmp_path, capsys, monkeypatch, freeze
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    options = ["--set", f"model.freeze={freeze}", "--set", "train.epochs=2", "--json"]
    fill = ["cache", "fill", "--recipe", str(tiny_recipe), *options]
    assert run([*fill, "--ray", cluster.address]) == 0
    [filled] = json.loads(capsys.readouterr().out)
    assert filled["fresh"] == filled["rows"] > 36
    assert run(["train", str(tiny_recipe), *options, "--out", str(tmp_path / "run")]) == 0
    captured = capsys.readouterr()
    [cache] = json.loads(captured.out)["cache"]
    assert (cache["fresh"], cache["rows"]) == (0, filled["rows"])


class Slow:
    """Work that takes a while, and says where it is done."""

    def __call__(self):
        def work(numbers):
            time.sleep(0.3)
            return [(number, os.getpid()) for number in numbers]

        return work


def test_what_a_lost_machine_had_is_done_again(cluster):
    found = []
    with connected(cluster.address):
        for numbers, results in map_on_cluster(Slow(), 200, 1):
            assert [number for number, _ in results] == list(numbers)
            found += results
            if len(found) >= 30 and cluster.second:
                cluster.remove_node(cluster.second, allow_graceful=False)
                cluster.second = None
    assert sorted(number for number, _ in found) == list(range(200))
    cluster.second = cluster.add_node(num_cpus=CPUS)
    cluster.wait_for_nodes()


def test_errors_of_workers_and_of_addresses_are_one_line(cluster, pictures, tmp_path, capsys):
    out = ["--out", str(tmp_path / "out")]
    checkpoint = ["-c", str(tmp_path / "none.pt")]
    assert run(["predict", str(pictures), *checkpoint, *out, "--ray", cluster.address]) == 4
    capsys.readouterr()
    assert run(["predict", str(pictures), "--ray", cluster.address]) == 2
    assert "given without --out" in capsys.readouterr().err
    assert run(["predict", str(pictures), *out, "--ray", "ray://127.0.0.1:10001"]) != 0


def test_a_cluster_that_is_not_there_is_an_error(trained, pictures, tmp_path):
    command = [
        sys.executable, "-m", "mnet_cli", "predict", str(pictures), "-c", str(trained),
        "--out", str(tmp_path / "out"), "--ray", "127.0.0.1:1",
    ]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 5
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("mnet: error: --ray 127.0.0.1:1: no cluster there")


def test_one_command_starts_a_cluster_of_its_own(trained, photos, tmp_path):
    command = [
        sys.executable, "-m", "mnet_cli", "predict", str(photos), "-c", str(trained),
        "--out", "out", "--ray", "local",
    ]  # fmt: skip
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=240, cwd=tmp_path, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert len(table_of(Path(tmp_path, "out"))) == 36
