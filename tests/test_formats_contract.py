import json

import pytest

from mnet_cli.data.preprocess import Preprocess
from mnet_cli.errors import WeightsError
from mnet_cli.formats.contract import Contract, read_contract

CONTRACT = Contract(
    arch="mobilenet_v2",
    model_args={"width_mult": 1.0},
    class_names=("daisy", "Löwenzahn\n"),
    preprocess=Preprocess(224, 256, "bilinear", (0.5,) * 3, (0.2,) * 3, (255,) * 3),
    source={"file": "best.pt", "sha256": "00"},
    metrics={"top1": 0.9},
)


def test_what_was_written_is_read_again():
    assert read_contract(CONTRACT.to_json(), "a.onnx") == CONTRACT
    assert CONTRACT.to_json().isascii()


def test_input_and_output_are_spelled_out():
    document = CONTRACT.to_dict()
    assert document["input"]["shape"] == ["N", 3, 224, 224]
    assert document["output"] == {"shape": ["N", 2], "kind": "logits"}


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "[]",
        "{",
        "null",
        '{"format": 1}',
        json.dumps(CONTRACT.to_dict() | {"class_names": [1, 2]}),
        json.dumps(CONTRACT.to_dict() | {"class_names": []}),
        json.dumps(CONTRACT.to_dict() | {"preprocess": {"image_size": 3}}),
        json.dumps(CONTRACT.to_dict() | {"stranger": 3}),
        json.dumps(CONTRACT.to_dict() | {"batch": -3}),
        json.dumps(CONTRACT.to_dict() | {"batch": "8"}),
        json.dumps(CONTRACT.to_dict() | {"baked": 1}),
        json.dumps(CONTRACT.to_dict() | {"preprocess": "x"}),
        json.dumps(
            CONTRACT.to_dict() | {"preprocess": CONTRACT.preprocess.to_dict() | {"std": [0, 1, 1]}}
        ),
        json.dumps(
            CONTRACT.to_dict() | {"preprocess": CONTRACT.preprocess.to_dict() | {"mean": [0.5]}}
        ),
        "[" * 100_000,
    ],
)
def test_damaged_metadata_is_refused(text):
    with pytest.raises(WeightsError, match=r"a\.onnx"):
        read_contract(text, "a.onnx")


def test_a_newer_format_asks_for_an_update():
    with pytest.raises(WeightsError, match="Update mnet"):
        read_contract(json.dumps(CONTRACT.to_dict() | {"format": 3}), "a.onnx")


def test_unknown_rules_of_decoding_ask_for_an_update():
    document = CONTRACT.to_dict()
    document["preprocess"]["decode"] += 1
    with pytest.raises(WeightsError, match=r"a\.onnx: decodes images by version 2 .* Update mnet"):
        read_contract(json.dumps(document), "a.onnx")
    del document["preprocess"]["decode"]
    assert read_contract(json.dumps(document | {"format": 1}), "a.onnx") == CONTRACT
