import csv
import json

import pytest

from mnet_cli.errors import MachineError, UsageError, WeightsError
from mnet_cli.run_directory import (
    claim_run,
    create_run,
    latest_run,
    point_latest,
    write_csv,
    write_json,
)


def test_names_are_numbered_from_the_second_run(tmp_path):
    names = [create_run(tmp_path / "runs", "flowers").name for _ in range(3)]
    assert names == ["flowers", "flowers-2", "flowers-3"]


def test_a_run_is_never_named_like_the_link(tmp_path):
    assert create_run(tmp_path, "latest").name == "latest-2"


def test_latest_follows_the_newest_run_and_survives_a_move(tmp_path):
    root = tmp_path / "runs"
    for _ in range(2):
        point_latest(root, create_run(root, "a"))
    assert latest_run(root).name == "a-2"
    moved = root.rename(tmp_path / "moved")
    assert latest_run(moved) == moved / "a-2"


def test_latest_leads_to_a_run_elsewhere_and_replaces_nothing_but_a_link(tmp_path):
    elsewhere = claim_run(tmp_path / "elsewhere")
    point_latest(tmp_path / "runs", elsewhere)
    assert latest_run(tmp_path / "runs") == elsewhere.resolve()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "latest").write_text("mine")
    with pytest.raises(UsageError, match="in the way"):
        point_latest(tmp_path / "mine", elsewhere)
    assert (tmp_path / "mine" / "latest").read_text() == "mine"


def test_no_run_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(WeightsError, match="Train first"):
        latest_run(tmp_path)


def test_named_folder_must_be_empty(tmp_path):
    assert claim_run(tmp_path / "new").is_dir()
    (tmp_path / "new" / "mine.txt").touch()
    with pytest.raises(UsageError, match="not empty"):
        claim_run(tmp_path / "new")
    assert (tmp_path / "new" / "mine.txt").exists()


def test_unwritable_root_is_the_machines_fault(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(MachineError):
        create_run(tmp_path / "file", "a")


def test_files_hold_what_was_written(tmp_path):
    write_json(tmp_path / "a.json", {"0": "gänseblümchen"})
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"0": "gänseblümchen"}
    rows = [{"path": 'odd, "name"\n', "extra": 1}]
    write_csv(tmp_path / "a.csv", ["path"], rows)
    with (tmp_path / "a.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [{"path": 'odd, "name"\n'}]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.json"]
