"""The contract of every exported file, as one JSON document.

It is in the file's own metadata where the format has some, under the key `mnet`, and in
`<file>.json` beside it. With it a program needs neither mnet nor the checkpoint to turn a
photograph into the name of a class. Format 1 lacks the version of the decode rules in
`preprocess`. Nothing here imports torch.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mnet_cli import __version__
from mnet_cli.data.preprocess import Preprocess
from mnet_cli.errors import WeightsError

FORMAT = 2
MAX_BATCH = 4096
KEY = "mnet"  # the contract's name in a file's metadata


@dataclass(frozen=True)
class Contract:
    """What a file takes, what it gives, and where it came from.

    Attributes:
        arch: Name of the architecture.
        model_args: What it was built with besides the number of classes.
        class_names: In the order of the outputs.
        preprocess: How an image becomes the network's input, normalisation included.
        source: `file` and `sha256` of the checkpoint.
        metrics: The checkpoint's, on its validation images.
        precision: `float32`, `float16` or `int8`.
        setting: How the precision was reached, for people.
        baked: The file takes pixels (N, S, S, 3), uint8, R, G, B, and gives probabilities (N, C);
            otherwise it takes normalised images (N, 3, S, S), float32, and gives logits.
        batch: N, where it is fixed; 0 for any.
        calibration: `images`, `seed` and `sha256` (of the list of their hashes) of what integers
            were calibrated on; empty otherwise.
        proof: What was measured on the file before it got its name: `images`, `max_delta` of
            the logits as a share of their range, `agreement` and `top1`, with `reference_top1`
            of the checkpoint.
        mnet_version: Of the program that exported it.
    """

    arch: str
    model_args: Mapping[str, Any]
    class_names: tuple[str, ...]
    preprocess: Preprocess
    source: Mapping[str, str]
    metrics: Mapping[str, float]
    precision: str = "float32"
    setting: str = ""
    baked: bool = False
    batch: int = 0
    calibration: Mapping[str, Any] = field(default_factory=dict)
    proof: Mapping[str, float] = field(default_factory=dict)
    mnet_version: str = __version__

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, with the shapes of input and output spelled out."""
        number, side = self.batch or "N", self.preprocess.image_size
        shape = [number, side, side, 3] if self.baked else [number, 3, side, side]
        return {
            "format": FORMAT,
            **asdict(self),
            "preprocess": self.preprocess.to_dict(),
            "class_names": list(self.class_names),
            "input": {
                "shape": shape,
                "dtype": "uint8" if self.baked else "float32",
                "colours": "RGB",
                "normalised": not self.baked,
            },
            "output": {
                "shape": [number, len(self.class_names)],
                "kind": "probabilities" if self.baked else "logits",
            },
        }

    def to_json(self) -> str:
        """Return the document as text, ASCII only, the same for the same contract."""
        return json.dumps(self.to_dict(), sort_keys=True)


def document_of(file: Path) -> Path:
    """The document beside an exported file; there, `file` holds the file's hashes besides."""
    return file.with_name(f"{file.name}.json")


def read_contract(text: str | bytes | None, where: str) -> Contract:
    """Read the document that `to_json` wrote.

    Args:
        text: The document; None or empty where a file carries none.
        where: The file that carries it, for errors.

    Raises:
        WeightsError: There is none, it is no such document, or of a newer format.
    """
    if not text:
        raise WeightsError(
            where,
            "no class names and no preprocessing in its metadata",
            next_step="Name a file that mnet export wrote",
        )
    try:
        content = json.loads(text)
        version = content.pop("format")
        if version > FORMAT:
            raise WeightsError(
                where,
                f"format {version} of exported files, but this mnet reads up to {FORMAT}",
                next_step="Update mnet",
            )
        del content["input"], content["output"]
        content["class_names"] = _names(content["class_names"])
        content["preprocess"] = Preprocess.from_dict(content["preprocess"], where)
        contract = Contract(**content)
        if not (
            isinstance(contract.batch, int)
            and 0 <= contract.batch <= MAX_BATCH
            and isinstance(contract.baked, bool)
        ):
            raise ValueError("batch or baked")
        return contract
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise WeightsError(
            where,
            f"damaged metadata ({type(error).__name__})",
            next_step="Export it again from its checkpoint",
        ) from error


def _names(value: Any) -> tuple[str, ...]:
    if not (isinstance(value, list) and value and all(isinstance(name, str) for name in value)):
        raise ValueError("class names")
    return tuple(value)
