"""Any bytes at all: only mnet's own errors leave its loaders. The long run: scripts/torture.sh."""

import io

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mnet_cli.data.images import decode_image
from mnet_cli.errors import DataError, MnetError, WeightsError
from mnet_cli.formats.checkpoint import build_from, load_checkpoint
from mnet_cli.formats.contract import read_contract
from mnet_cli.inference.classifier import open_classifier

FILE_PER_EXAMPLE = settings(
    deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def encoded(kind: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind)
    return content.getvalue()


def saved() -> bytes:
    content = io.BytesIO()
    torch.save({"format": 1, "arch": "mobilenet_v2", "state_dict": {"a": torch.ones(3)}}, content)
    return content.getvalue()


@st.composite
def damaged(draw, whole: bytes) -> bytes:
    """Bytes with a stretch replaced, and perhaps cut off."""
    at = draw(st.integers(0, len(whole) - 1))
    stretch = draw(st.binary(max_size=40))
    end = draw(st.integers(at, len(whole)))
    return (whole[:at] + stretch + whole[at + len(stretch) :])[: max(end, 1)]


IMAGES = st.one_of(
    st.binary(max_size=300), *(damaged(encoded(kind)) for kind in ("JPEG", "PNG", "GIF", "TIFF"))
)
WEIGHTS = st.one_of(st.binary(max_size=300), damaged(saved()))


@pytest.mark.filterwarnings("ignore:::PIL")  # as mnet does; pytest undoes that
@settings(deadline=5000, max_examples=300)
@given(IMAGES)
def test_image_bytes(content):
    try:
        image = decode_image(content, "any.jpg")
    except DataError:
        return
    assert image.mode == "RGB"


@FILE_PER_EXAMPLE
@given(content=WEIGHTS)
def test_checkpoint_bytes(tmp_path, content):
    path = tmp_path / "any.pt"
    path.write_bytes(content)
    try:
        model = build_from(load_checkpoint(path))
    except MnetError:
        return
    assert not model.training


@FILE_PER_EXAMPLE
@given(content=WEIGHTS, suffix=st.sampled_from([".onnx", ".torchscript", ".pt2"]))
def test_bytes_of_exported_files(tmp_path, content, suffix):
    path = tmp_path / f"any{suffix}"
    path.write_bytes(content)
    try:
        classifier = open_classifier(path, "cpu")
    except WeightsError:
        return
    assert classifier.class_names


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)


@given(st.one_of(st.text(max_size=80), JSON.map(repr)))
def test_contract_text(text):
    try:
        contract = read_contract(text, "any.onnx")
    except WeightsError:
        return
    assert contract.class_names
