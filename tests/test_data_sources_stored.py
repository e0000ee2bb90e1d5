"""Manifests, tar shards, Parquet files and folders, on disk and at URLs."""

import csv
import io
import json
import os
import tarfile
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from mnet_cli.cli import run
from mnet_cli.data import storage
from mnet_cli.data.sources import open_checked, open_source
from mnet_cli.data.storage import find_file
from mnet_cli.errors import DataError, MachineError, UsageError

SPLITS = ("train", "val")


def images_of(photos):
    """Split, class, name and bytes of each image, in another order than that of folders."""
    paths = sorted(photos.rglob("*.jpg"), key=lambda path: path.name)
    return [(p.parts[-3], p.parts[-2], p.name, p.read_bytes()) for p in reversed(paths)]


def write_csv(photos, to):
    to.mkdir()
    with (to / "list.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("path", "label", "split"))
        for split, label, name, _ in images_of(photos):
            path = os.path.relpath(photos / split / label / name, to)
            rows.writerow((path, label, split))
    return to / "list.csv"


def add_member(tar, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def write_tar(photos, to, per_shard=7):
    for split in SPLITS:
        (to / split).mkdir(parents=True)
        rows = [row for row in images_of(photos) if row[0] == split]
        for start in range(0, len(rows), per_shard):
            with tarfile.open(to / split / f"shard-{start:05d}.tar", "w") as tar:
                for number, (_, label, name, content) in enumerate(rows[start:][:per_shard]):
                    key = f"{label}/{start + number:05d}"
                    about = {"label": label, "path": f"{label}/{name}"}
                    add_member(tar, f"{key}.jpg", content)
                    add_member(tar, f"{key}.json", json.dumps(about).encode())
    return to


def write_parquet(photos, to, group=5):
    for split in SPLITS:
        (to / split).mkdir(parents=True)
        rows = [row for row in images_of(photos) if row[0] == split]
        names = sorted({label for _, label, _, _ in rows})
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        about = {"huggingface": json.dumps({"info": {"features": features}})}
        table = pa.table(
            {
                "image": [{"bytes": row[3], "path": f"{row[1]}/{row[2]}"} for row in rows],
                "label": [names.index(row[1]) for row in rows],
            }
        ).replace_schema_metadata(about)
        pyarrow.parquet.write_table(table, to / split / "shard-0.parquet", row_group_size=group)
    return to


WRITERS = {"csv": write_csv, "tar": write_tar, "parquet": write_parquet}


@pytest.fixture(scope="module")
def stored(photos, tmp_path_factory):
    """The same photographs in every layout; do not change them."""
    to = tmp_path_factory.mktemp("stored")
    return {"folder": photos} | {kind: write(photos, to / kind) for kind, write in WRITERS.items()}


@pytest.fixture(scope="module")
def bucket(stored):
    """A bucket on a local server with all layouts in it."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "only-a-test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret-indeed")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        client = boto3.client("s3")
        client.create_bucket(Bucket="photos")
        for kind in ("folder", "tar", "parquet"):
            for path in stored[kind].rglob("*.*"):
                key = f"{kind}/{path.relative_to(stored[kind]).as_posix()}"
                client.put_object(Bucket="photos", Key=key, Body=path.read_bytes())
        yield "s3://photos"
    server.stop()


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder with ranges; what `server.plan` says of a path comes first."""

    versions = True

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        plan = self.server.plan.get(self.path, [])
        answer = plan.pop(0) if plan else 200
        self.server.requests.append(self.path)
        if answer == "stall":
            time.sleep(3)
            answer = 500
        if answer != 200:
            self.send_error(answer)
            return
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        content, start, code = path.read_bytes(), 0, 200
        stop = len(content)
        if wanted := self.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, stop, code = int(first), min(int(last or stop - 1) + 1, stop), 206
        self.send_response(code)
        self.send_header("Accept-Ranges", "bytes")
        if self.versions:
            self.send_header("ETag", '"1"')
        if code == 206:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[start:stop])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server of the folder `tmp_path / "web"`."""
    (tmp_path / "web").mkdir()
    handler = partial(Handler, directory=str(tmp_path / "web"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.plan, server.requests = {}, []
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(storage, "FIRST_PAUSE", 0.01)
    yield server
    server.shutdown()
    server.server_close()


def weights_of(run_directory):
    state = torch.load(run_directory / "best.pt", weights_only=True)["state_dict"]
    return b"".join(tensor.numpy().tobytes() for tensor in state.values())


@pytest.mark.parametrize("freeze", ["none", "features"])
def test_the_same_photographs_train_the_same_network_from_every_source(
    stored, bucket, tiny_recipe, tmp_path, freeze
):
    roots = {kind: str(place) for kind, place in stored.items()}
    roots["s3 tar"] = f"{bucket}/tar"
    found = {}
    for kind, root in roots.items():
        out = tmp_path / kind
        options = ["--set", f"model.freeze={freeze}", "--set", "train.epochs=1"]
        if kind == "s3 tar":
            options += ["--set", "data.workers=2"]
        assert run(["train", str(tiny_recipe), "--data", root, *options, "--out", str(out)]) == 0
        found[kind] = weights_of(out)
        stored_in_run = "".join(
            path.read_text() for path in out.iterdir() if path.suffix in (".json", ".yaml", ".csv")
        )
        assert "very-secret" not in stored_in_run
    assert len(set(found.values())) == 1, [kind for kind in found if found[kind] != found["folder"]]


@pytest.mark.parametrize("kind", ["csv", "tar", "parquet"])
def test_a_source_lists_what_the_folder_has(stored, kind):
    folder, source = open_checked(str(stored["folder"])), open_checked(str(stored[kind]))
    assert list(source) == ["train", "val"]
    for split in SPLITS:
        assert source[split].class_names == folder[split].class_names
        assert source[split].labels.tolist() == folder[split].labels.tolist()
        for one, other in zip(source[split], folder[split], strict=True):
            assert one.read() == other.read()
            assert Path(one.name).parts[-2:] == Path(other.name).parts[-2:]
            assert one.stamp() is not None


def test_eval_and_predict_take_urls(stored, bucket, tiny_recipe, tmp_path, capsys):
    out = tmp_path / "run"
    fast = ["--set", "train.epochs=1"]
    assert run(["train", str(tiny_recipe), *fast, "--out", str(out)]) == 0
    found = []
    for kind in ("folder", "tar", "parquet"):
        capsys.readouterr()
        data = ["--data", f"{bucket}/{kind}", "--split", "val", "--json"]
        assert run(["eval", "-c", str(out), *data]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["images"] == 12
        found.append(document["loss"])
        assert run(["predict", f"{bucket}/{kind}", "-c", str(out)]) == 0
        assert len(capsys.readouterr().out.splitlines()) == 36
    assert len(set(found)) == 1
    image = f"{bucket}/folder/val/red/0.jpg"
    assert run(["predict", image, "-c", str(out)]) == 0
    assert "prob" in capsys.readouterr().out


def test_a_run_is_evaluated_and_resumed_on_its_url(bucket, tiny_recipe, tmp_path, capsys):
    out = tmp_path / "run"
    data = ["--data", f"{bucket}/tar", "--set", "train.epochs=1"]
    assert run(["train", str(tiny_recipe), *data, "--out", str(out)]) == 0
    assert json.loads((out / "data.json").read_text()) == {"root": f"{bucket}/tar"}
    (out / "summary.json").unlink()
    assert run(["train", "--resume", str(out)]) == 0
    assert run(["eval", "-c", str(out)]) == 0


@pytest.mark.parametrize(
    "url",
    [
        "s3://user:hidden@photos/tar",
        "https://example.org/list.csv?X-Amz-Signature=hidden",
        "https://example.org/a.tar?sig=hidden&x=1",
        "https://example.org/a.tar?sv=1;sig=hidden",
        "https://example.org/a.tar#token=hidden",
        "s3://KEY:hid/den@photos/hidden",
        "simplecache::https://user:hidden@example.org/a.tar",
        "zip://a.csv::https://user:hidden@example.org/a.zip",
        "https://[user:hidden@example.org/a.tar",
    ],
)
def test_a_url_with_credentials_is_refused_and_not_repeated(url, tiny_recipe, tmp_path, capsys):
    for command in (
        ["train", str(tiny_recipe), "--data", url, "--out", str(tmp_path / "run")],
        ["train", str(tiny_recipe), "--set", f"data.root={url}", "--out", str(tmp_path / "run")],
        ["predict", url],
        ["data", "check", url],
    ):
        assert run(command) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("mnet: error: ")
        assert "hidden" not in captured.err + captured.out
    assert not (tmp_path / "run").exists()


def tar_of(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            add_member(tar, name, content)
    return path


def test_labels_of_a_shard_are_names_numbers_or_numbers_of_a_list(tmp_path):
    members = [("a.jpg", b"1"), ("a.cls", b"0"), ("b.jpg", b"2"), ("b.cls", b"1")]
    shard = tar_of(tmp_path / "shards-0.tar", [*members, ("c.png", b"3"), ("c.cls", b"1\n")])
    [source] = open_source(str(shard)).values()
    assert source.class_names == ("0", "1")
    assert [image.read() for image in source] == [b"1", b"2", b"3"]
    (tmp_path / "classes.txt").write_text("roses\ndaisy\n")
    [source] = open_source(str(tmp_path)).values()
    assert source.class_names == ("roses", "daisy")
    assert source.labels.tolist() == [0, 1, 1]


def test_a_shard_that_changes_is_read_again(tmp_path):
    shard = tar_of(tmp_path / "shards-0.tar", [("a.jpg", b"1"), ("a.cls", b"x")])
    assert len(open_source(str(shard))["all"]) == 1
    tar_of(shard, [("a.jpg", b"1"), ("a.cls", b"x"), ("b.jpg", b"22"), ("b.cls", b"y")])
    source = open_source(str(shard))["all"]
    assert [image.read() for image in source] == [b"1", b"22"]


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ([("a.jpg", b"1"), ("a.png", b"2"), ("a.cls", b"x")], "key a has two images"),
        ([("a.jpg", b"1"), ("a.json", b"{")], "is cut or damaged"),
        ([("a.jpg", b"1"), ("a.cls", b"7")], "the label 7, but classes.txt lists 2 classes"),
        ([("a.jpg", b"1"), ("a.cls", b"rose")], '"rose" is not in classes.txt'),
    ],
)
def test_a_bad_shard_is_an_error_that_names_it(tmp_path, members, says):
    shard = tar_of(tmp_path / "shards-0.tar", members)
    (tmp_path / "classes.txt").write_text("x\ny\n")
    with pytest.raises(DataError, match=says) as caught:
        open_source(str(shard))
    assert "shards-0.tar" in caught.value.where


@pytest.mark.parametrize("kept", [700, 1500, 2500])
def test_a_cut_shard_is_an_error(tmp_path, kept):
    shard = tar_of(tmp_path / "shards-0.tar", [("a.jpg", bytes(900)), ("a.cls", b"x")])
    shard.write_bytes(shard.read_bytes()[:kept])
    with pytest.raises(DataError, match="is cut or damaged"):
        open_source(str(shard))


def test_members_without_class_or_with_other_formats_are_noted(tmp_path):
    members = [("a.jpg", b"1"), ("a.cls", b"x"), ("b.jpg", b"2"), ("c.heic", b"3")]
    [source] = open_source(str(tar_of(tmp_path / "shards-0.tar", members))).values()
    assert len(source) == 1
    assert any("b.jpg: no .cls or .json" in note for note in source.ignored)
    assert any("1 members .heic: unsupported format" in note for note in source.ignored)


def test_a_compressed_shard_is_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        add_member(tar, "a.jpg", b"1")
    with pytest.raises(DataError, match="is compressed"):
        open_source(str(tmp_path / "a.tar.gz"))


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.csv", "file,label\n1.jpg,x\n", "has no column path; its columns are file, label"),
        ("a.csv", "", "has no column path; its columns are none"),
        ("a.csv", "path,label\n1.jpg\n", "row 1: no label"),
        ("a.csv", "path,label,split\n1.jpg,x,dev\n", 'unknown split "dev"'),
        ("a.csv", "path,label,split\n1.jpg,x,train\n2.jpg,x,\n", "others have none"),
        ("a.csv", "path,label\n1.jpg,x\n1.jpg,x\n", "two images are named 1.jpg"),
        ("a.csv", 'path,label\n"1.jpg,x\n', "is not CSV"),
        ("a.csv", "path,label\n1.jpg,x,y\n", "line 2: has more fields than the 2 columns"),
        ("a.csv", "path,label\n", "lists no images"),
        ("a.jsonl", '{"path": "1.jpg"}\n', "row 1: no label"),
        ("a.jsonl", "[1]\n", "line 1: is not a JSON object"),
        ("a.jsonl", "{\n", "line 1: is not JSON"),
    ],
)
def test_a_bad_manifest_is_an_error_that_names_the_row(tmp_path, name, text, says):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=says):
        open_source(str(tmp_path / name))


def test_a_manifest_lists_files_that_are_missing(tmp_path, photos):
    (tmp_path / "a.csv").write_bytes("path,label\ncaf\xe9.jpg,x\n".encode("latin-1"))
    with pytest.raises(DataError, match="is not UTF-8"):
        open_source(str(tmp_path / "a.csv"))
    rows = "".join(f"{path},{path.parts[-2]}\n" for path in sorted(photos.rglob("*.jpg")))
    (tmp_path / "a.csv").write_text(f"path,label\n{rows}none.jpg,red\n")
    assert run(["data", "check", str(tmp_path / "a.csv")]) == 3
    with pytest.raises(DataError, match="does not exist"):
        open_source(str(tmp_path / "b.csv"))


def parquet_of(path, **columns):
    pyarrow.parquet.write_table(pa.table(columns), path)
    return path


def test_a_bad_parquet_file_is_an_error_that_names_it(tmp_path, stored):
    path = tmp_path / "a.parquet"
    with pytest.raises(DataError, match="has no column image; its columns are x"):
        open_source(str(parquet_of(path, x=[1])))
    with pytest.raises(DataError, match="has no column label; its columns are image"):
        open_source(str(parquet_of(path, image=[b"1"])))
    with pytest.raises(DataError, match="the column image is of the type int64"):
        open_source(str(parquet_of(path, image=[1], label=["x"])))
    with pytest.raises(DataError, match="row 1: no label"):
        open_source(str(parquet_of(path, image=[b"1", b"2"], label=["x", None])))
    content = (stored["parquet"] / "train" / "shard-0.parquet").read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="is cut, damaged or no Parquet file"):
        open_source(str(path))


def test_text_labels_and_plain_bytes_of_parquet_are_read(tmp_path):
    path = parquet_of(tmp_path / "a.parquet", image=[b"2", b"1"], label=["y", "x"])
    [source] = open_source(str(path)).values()
    assert source.class_names == ("x", "y")
    assert [image.read() for image in source] == [b"1", b"2"]


def test_a_read_that_fails_is_tried_again(server, tmp_path):
    content = np.random.default_rng(0).bytes(100_000)
    (tmp_path / "web" / "a.bin").write_bytes(content)
    server.plan["/a.bin"] = [500, 503, 200, 500, 200]
    file = find_file(f"{server.url}/a.bin")
    assert file.size == len(content)
    assert file.read(500, 90_000) == content[500:90_500]
    requests = len(server.requests)
    assert file.read(99_000) == content[99_000:]  # of the block that was kept
    assert len(server.requests) == requests


def test_a_server_that_refuses_stalls_or_breaks_is_an_error_with_the_url(
    server, tmp_path, monkeypatch
):
    (tmp_path / "web" / "a.bin").write_bytes(bytes(1000))
    url = f"{server.url}/a.bin"
    assert find_file(f"{server.url}/b.bin") is None
    server.plan["/a.bin"] = [403, 403]  # of HEAD and of GET
    with pytest.raises(MachineError, match="access denied") as caught:
        find_file(url)
    assert caught.value.where == url
    server.plan["/a.bin"] = [500] * 50
    with pytest.raises(MachineError, match=r"5 attempts failed, the last one with .* status 500"):
        find_file(url)
    server.plan["/a.bin"] = ["stall"] * 50
    monkeypatch.setenv("MNET_READ_TIMEOUT", "0.2")
    storage._filesystem.cache_clear()
    with pytest.raises(MachineError, match=r"5 attempts failed, the last one with .*Timeout"):
        find_file(url)
    storage._filesystem.cache_clear()


def test_an_image_that_cannot_be_read_in_an_epoch_ends_the_run_with_its_state(
    server, tiny_recipe, tmp_path, draw_photos, capsys
):
    draw_photos(tmp_path / "web" / "photos", train=4, val=2)
    rows = [
        f"photos/{path.relative_to(tmp_path / 'web' / 'photos')},{path.parts[-2]},{path.parts[-3]}"
        for path in sorted((tmp_path / "web").rglob("*.jpg"))
    ]
    (tmp_path / "web" / "list.csv").write_text("path,label,split\n" + "\n".join(rows) + "\n")
    # Looked up and read when it is checked, then looked up in the first epoch.
    server.plan["/photos/train/red/0.jpg"] = [200, 200] + [500] * 50
    out = tmp_path / "run"
    train = ["train", str(tiny_recipe), "--data", f"{server.url}/list.csv", "--out", str(out)]
    assert run(train) == 5
    last = capsys.readouterr().err.splitlines()[-1]
    assert "/photos/train/red/0.jpg" in last and "status 500" in last
    server.plan.clear()
    assert run(["train", "--resume", str(out)]) == 0


def test_a_manifest_at_a_url_names_images_above_and_beside_it(server, tmp_path):
    (tmp_path / "web" / "lists").mkdir()
    (tmp_path / "web" / "a.jpg").write_bytes(b"1")
    (tmp_path / "web" / "lists" / "b.jpg").write_bytes(b"22")
    (tmp_path / "web" / "lists" / "list.csv").write_text(
        "path,label\n../a.jpg,x\n./b.jpg,x\n/a.jpg,y\n"
    )
    source = open_source(f"{server.url}/lists/list.csv")["all"]
    assert [image.read() for image in source] == [b"1", b"22", b"1"]


def test_a_changed_file_is_read_again_where_the_server_gives_no_version(
    server, tmp_path, monkeypatch
):
    monkeypatch.setattr(Handler, "versions", False)
    path = tmp_path / "web" / "a.bin"
    path.write_bytes(b"old")
    assert find_file(f"{server.url}/a.bin").read() == b"old"
    path.write_bytes(b"new")
    monkeypatch.setattr(storage, "THIS_RUN", "another run")
    assert find_file(f"{server.url}/a.bin").read() == b"new"


def test_kept_blocks_stay_below_their_limit(server, tmp_path, monkeypatch):
    content = np.random.default_rng(0).bytes(300_000)
    (tmp_path / "web" / "a.bin").write_bytes(content)
    monkeypatch.setattr(storage, "BLOCK", 10_000)
    monkeypatch.setattr(storage, "PRUNED", 10_000)
    monkeypatch.setenv("MNET_BLOCKS_GB", "0.00005")
    assert find_file(f"{server.url}/a.bin").read() == content
    kept = list(Path(os.environ["XDG_CACHE_HOME"]).rglob("blocks/*/*"))
    assert sum(path.stat().st_size for path in kept) <= 60_000
    monkeypatch.setenv("MNET_BLOCKS_GB", "many")
    with pytest.raises(UsageError, match="MNET_BLOCKS_GB"):
        storage.prune_blocks()


def test_an_unknown_kind_of_url_is_refused(capsys):
    assert run(["data", "check", "nowhere://photos"]) == 2
    assert "unknown kind of URL" in capsys.readouterr().err


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_shards_of_every_kind_of_tar_are_read(tmp_path, form):
    names = ["a/short", f"{'long' * 15}/{'name' * 15}", f"{'longer' * 15}/{'name' * 20}"]
    if form != tarfile.USTAR_FORMAT:
        names.append("very/" + "long" * 60)
    with tarfile.open(tmp_path / "shards-0.tar", "w", format=form) as tar:
        tar.addfile(tarfile.TarInfo("a"))
        folder = tarfile.TarInfo("b")
        folder.type = tarfile.DIRTYPE
        for number, name in enumerate(names):
            if number == 1:
                tar.addfile(folder)
            add_member(tar, f"{name}.jpg", bytes([number]) * 700)
            add_member(tar, f"{name}.cls", b"x")
    [source] = open_source(str(tmp_path)).values()
    assert sorted(image.read()[:1] for image in source) == [bytes([n]) for n in range(len(names))]
    content = (tmp_path / "shards-0.tar").read_bytes()
    (tmp_path / "shards-0.tar").write_bytes(content[:-11_000])
    with pytest.raises(DataError, match="is cut or damaged"):
        open_source(str(tmp_path))
