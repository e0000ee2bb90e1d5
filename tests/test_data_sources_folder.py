"""What a folder of classes holds, and every way in which it may not be one."""

import os
from pathlib import Path

import pytest

from mnet_cli.data.sources.classes import check_classes, match_classes
from mnet_cli.data.sources.folder import IMAGE_EXTENSIONS, FolderSource
from mnet_cli.errors import DataError

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX links and FIFOs")


def scan_splits(root: Path):
    return check_classes(dict(FolderSource.open(str(root))))


def scan_classes(root: Path) -> FolderSource:
    return scan_splits(root)["all"]


def fill(root: Path, *paths: str) -> Path:
    """Create files below `root`; a scan never opens them, so they may be empty."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def refusal(root: Path, scan=scan_classes) -> DataError:
    with pytest.raises(DataError) as caught:
        scan(root)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(root)[:8])
    return caught.value


def test_images_come_sorted_class_by_class_with_their_labels(tmp_path):
    fill(tmp_path, "roses/b.jpg", "roses/a.JPG", "daisy/2.png", "daisy/10.webp")
    found = scan_classes(tmp_path)
    assert found.root == str(tmp_path)
    assert found.class_names == ("daisy", "roses")
    assert tuple(found.names) == ("daisy/10.webp", "daisy/2.png", "roses/a.JPG", "roses/b.jpg")
    assert found.labels.tolist() == [0, 0, 1, 1]
    assert found.ignored == ()


def test_every_supported_extension_counts(tmp_path):
    fill(tmp_path, "b/1.jpg", *(f"a/1{extension}" for extension in IMAGE_EXTENSIONS))
    assert scan_classes(tmp_path).labels.tolist().count(0) == len(IMAGE_EXTENSIONS) == 9


def test_images_in_subfolders_belong_to_the_class(tmp_path):
    fill(tmp_path, "a/x/y/1.jpg", "a/2.jpg", "b/1.jpg")
    assert tuple(scan_classes(tmp_path).names) == ("a/2.jpg", "a/x/y/1.jpg", "b/1.jpg")


def test_what_is_skipped_is_said(tmp_path):
    fill(
        tmp_path,
        "a/1.jpg", "a/._1.jpg", "a/.ipynb_checkpoints/1.jpg", "a/Thumbs.db", "a/notes",
        "b/1.jpg", "b/__MACOSX/1.jpg", "__MACOSX/c/1.jpg", ".git/1.jpg", "README.md",
    )  # fmt: skip
    found = scan_classes(tmp_path)
    assert tuple(found.names) == ("a/1.jpg", "b/1.jpg")
    assert found.ignored == (
        ".git: hidden",
        "README.md: not in a class folder",
        "__MACOSX: hidden",
        "a/._1.jpg: hidden",
        "a/.ipynb_checkpoints: hidden",
        "a/Thumbs.db: unsupported format .db",
        "a/notes: unsupported format (no extension)",
        "b/__MACOSX: hidden",
    )


def test_a_missing_root_is_refused(tmp_path):
    for scan in (scan_classes, scan_splits):
        assert refusal(tmp_path / "no", scan).found == "does not exist"


def test_a_file_as_root_is_refused(tmp_path):
    fill(tmp_path, "data.zip")
    assert refusal(tmp_path / "data.zip").found == "is a file, not a folder"


def test_an_empty_root_is_refused_with_the_layout(tmp_path):
    error = refusal(tmp_path)
    assert "empty" in error.found
    assert "ROOT/daisy/1.jpg" in error.next_step


def test_images_without_class_folders_are_refused_with_the_layout(tmp_path):
    error = refusal(fill(tmp_path, "1.jpg", "2.jpg"))
    assert error.found == "no class folders"
    assert "ROOT/daisy/1.jpg" in error.next_step
    assert "1.jpg: not in a class folder" in error.details


def test_one_class_is_refused_by_name(tmp_path):
    assert "only one class, 'daisy'" in refusal(fill(tmp_path, "daisy/1.jpg")).found


def test_an_empty_class_is_named_with_what_it_held_instead(tmp_path):
    fill(tmp_path, "a/1.jpg", "empty/.DS_Store", "empty/sub/x.txt")
    error = refusal(tmp_path)
    assert "'empty'" in error.found
    assert error.details == (
        "empty/.DS_Store: hidden",
        "empty/sub/x.txt: unsupported format .txt",
    )


def test_a_class_of_unsupported_formats_is_refused_and_the_formats_are_named(tmp_path):
    fill(tmp_path, "a/1.jpg", "phone/1.HEIC", "phone/2.HEIC", "phone/3.avif")
    found = refusal(tmp_path).found
    assert "'phone'" in found
    assert "unsupported format .HEIC (2)" in found
    assert "unsupported format .avif (1)" in found


@posix
def test_links_to_themselves_and_to_the_root_end_and_count_no_image_twice(tmp_path):
    root = fill(tmp_path / "set", "a/1.jpg", "b/1.jpg", "b/2.jpg")
    (root / "a" / "self").symlink_to(root / "a")
    (root / "a" / "root").symlink_to(root)
    (root / "b" / "root_too").symlink_to(root)
    (root / "b" / "above").symlink_to(tmp_path)
    (root / "a" / "top").symlink_to("/")
    (root / "a" / "other").symlink_to(root / "b")
    (root / "a" / "spin").symlink_to(root / "a" / "spin")
    found = scan_classes(root)
    assert tuple(found.names) == ("a/1.jpg", "b/1.jpg", "b/2.jpg")
    assert len(found.ignored) == 7
    assert "a/self: a folder that was visited under another name" in found.ignored
    assert "a/spin: a link that leads nowhere" in found.ignored


@posix
def test_links_to_folders_elsewhere_are_followed(tmp_path):
    fill(tmp_path, "store/1.jpg", "store/deep/2.jpg", "more/3.jpg", "set/b/1.jpg")
    (tmp_path / "set" / "a").symlink_to(tmp_path / "store")
    (tmp_path / "set" / "b" / "more").symlink_to(tmp_path / "more")
    found = scan_classes(tmp_path / "set")
    assert tuple(found.names) == ("a/1.jpg", "a/deep/2.jpg", "b/1.jpg", "b/more/3.jpg")


@posix
def test_a_linked_image_counts_once_in_its_class_under_its_real_name(tmp_path):
    fill(tmp_path, "a/z.jpg", "b/1.jpg")
    (tmp_path / "a" / "link.jpg").symlink_to("z.jpg")
    found = scan_classes(tmp_path)
    assert tuple(found.names) == ("a/z.jpg", "b/1.jpg")
    assert found.ignored == ("a/link.jpg: the same file as another of its class",)


@posix
def test_one_file_in_two_classes_stays_visible_in_both(tmp_path):
    fill(tmp_path, "a/1.jpg", "b/2.jpg")
    os.link(tmp_path / "a" / "1.jpg", tmp_path / "b" / "1.jpg")
    assert tuple(scan_classes(tmp_path).names) == ("a/1.jpg", "b/1.jpg", "b/2.jpg")


@posix
def test_two_names_of_one_class_folder_are_no_two_classes(tmp_path):
    fill(tmp_path, "a/1.jpg", "c/1.jpg")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert "'b'" in refusal(tmp_path).found


@posix
def test_fifos_and_dangling_links_are_skipped_and_said(tmp_path):
    fill(tmp_path, "a/1.jpg", "b/1.jpg")
    os.mkfifo(tmp_path / "a" / "pipe.jpg")
    (tmp_path / "a" / "gone.jpg").symlink_to("nothing.jpg")
    (tmp_path / "a" / "null.jpg").symlink_to("/dev/null")
    found = scan_classes(tmp_path)
    assert tuple(found.names) == ("a/1.jpg", "b/1.jpg")
    assert found.ignored == (
        "a/gone.jpg: a link that leads nowhere",
        "a/null.jpg: not a regular file",
        "a/pipe.jpg: not a regular file",
    )


def test_an_unreadable_folder_is_refused_by_name(tmp_path, monkeypatch):
    # The superuser may read everything, so the refusal of the system is simulated.
    fill(tmp_path, "a/1.jpg", "a/locked/2.jpg", "b/1.jpg")
    scandir = os.scandir

    def guarded(folder):
        if Path(folder).name == "locked":
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", guarded)
    error = refusal(tmp_path)
    assert error.where == str(tmp_path / "a" / "locked")
    assert "Permission denied" in error.found


@pytest.mark.parametrize(
    ("one", "other"), [("Rose", "rose"), ("caf\u00e9", "cafe\u0301"), ("ß", "SS")]
)
def test_class_names_alike_but_for_case_or_unicode_form_are_refused(tmp_path, one, other):
    fill(tmp_path, f"{one}/1.jpg", f"{other}/1.jpg")
    if len(list(tmp_path.iterdir())) == 1:
        pytest.skip("this file system takes the two names for one")
    found = refusal(tmp_path).found
    assert ascii(one) in found
    assert ascii(other) in found


@posix
def test_a_folder_of_classes_is_one_split_named_all(tmp_path):
    fill(tmp_path, "a/1.jpg", "b/1.jpg")
    [(split, found)] = scan_splits(tmp_path).items()
    assert split == "all"
    assert tuple(found.names) == tuple(scan_classes(tmp_path).names)


def test_train_and_val_share_the_labels_of_train(tmp_path):
    fill(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "train/c/1.jpg", "val/b/2.jpg", "val/c/2.jpg")
    fill(tmp_path, "test/c/3.jpg")
    splits = scan_splits(tmp_path)
    assert list(splits) == ["train", "val", "test"]
    assert splits["train"].labels.tolist() == [0, 1, 2]
    assert splits["val"].labels.tolist() == [1, 2]
    assert splits["test"].labels.tolist() == [2]
    assert splits["val"].class_names == ("a", "b", "c")
    assert splits["val"].place == str(tmp_path / "val")


def test_a_class_of_val_that_train_lacks_is_refused(tmp_path):
    fill(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "val/a/2.jpg", "val/x/2.jpg")
    error = refusal(tmp_path, scan_splits)
    assert "'x'" in error.found
    assert error.where == str(tmp_path / "val")


def test_an_empty_val_is_refused(tmp_path):
    fill(tmp_path, "train/a/1.jpg", "train/b/1.jpg")
    (tmp_path / "val").mkdir()
    assert refusal(tmp_path, scan_splits).where == str(tmp_path / "val")


@pytest.mark.parametrize("other", ["validation", "valid", "Val", "test"])
def test_half_a_split_is_not_taken_for_two_classes(tmp_path, other):
    fill(tmp_path, "train/a/1.jpg", f"{other}/a/1.jpg")
    assert "not both train and val" in refusal(tmp_path, scan_splits).found


def test_matching_goes_by_name_not_by_position(tmp_path):
    found = scan_classes(fill(tmp_path, "a/1.jpg", "b/1.jpg"))
    matched = match_classes(found, ["z", "b", "a"])
    assert matched.class_names == ("z", "b", "a")
    assert tuple(matched.names) == tuple(found.names)
    assert matched.labels.tolist() == [2, 1]


def test_matching_refuses_a_class_that_the_model_does_not_know(tmp_path):
    found = scan_classes(fill(tmp_path, "a/1.jpg", "b/1.jpg"))
    with pytest.raises(DataError, match=r"unknown class 'b', the classes are 'a', 'c'"):
        match_classes(found, ("a", "c"))
