"""ONNX graphs of any network: written directly where that is possible, else by `torch.onnx`."""

import io
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout

import torch
from torch import Tensor, nn

from mnet_cli.models.onnx_graph import (
    INPUT,
    OPSET,
    OUTPUT,
    UnsupportedOperatorError,
    fold_batch_norms,
    to_onnx,
)
from mnet_cli.system.quiet import quiet

ONNX_TYPES = {torch.uint8: 2, torch.float32: 1}  # element types of `onnx.TensorProto`


def onnx_bytes(module: nn.Module, example: Tensor, *, free_batch: bool) -> bytes:
    """Convert a network to a serialized ONNX model, with its input named `INPUT`.

    Args:
        module: From one tensor to one tensor; its weights are taken in evaluation mode.
        example: An input; its shape and type become those of the model's input.
        free_batch: Leave the first axis free.

    Raises:
        UnsupportedOperatorError: `torch.onnx` does not support the network either.
    """
    batch: Sequence[int | str] = ["batch"] if free_batch else [len(example)]
    try:
        shape = [*batch, *example.shape[1:]]
        return to_onnx(module, shape, input_type=ONNX_TYPES[example.dtype])
    except UnsupportedOperatorError:
        return export_by_torch(module, example, free_batch=free_batch)


def export_by_torch(module: nn.Module, example: Tensor, *, free_batch: bool) -> bytes:
    """Convert a network by `torch.onnx`; arguments and errors as in `onnx_bytes`.

    The exporter that traces needs no further package; PyTorch's newer one needs onnxscript.
    """
    content = io.BytesIO()
    try:
        with (
            quiet(),
            redirect_stdout(io.StringIO()),  # it prints the graph that it cannot export
            warnings.catch_warnings(),
            torch.inference_mode(),
        ):
            warnings.simplefilter("ignore")  # the tracing exporter is deprecated
            # A branch that depends on the data would become the one that the example takes.
            warnings.simplefilter("error", torch.jit.TracerWarning)  # type: ignore[attr-defined]
            torch.onnx.export(
                fold_batch_norms(module),
                (example,),
                content,  # type: ignore[arg-type]  # this exporter takes a file
                input_names=[INPUT],
                output_names=[OUTPUT],
                opset_version=OPSET,
                dynamo=False,
                dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}} if free_batch else None,
            )
    except Exception as error:  # the exporter's errors have no common base class
        [reason, *_] = str(error).strip().splitlines() or [type(error).__name__]
        raise UnsupportedOperatorError(f"torch.onnx: {reason}") from error
    return content.getvalue()
