import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from mnet_cli.models import forward
from mnet_cli.models.device import image_format, one_thread, to_device
from mnet_cli.models.forward import compile_forward
from mnet_cli.models.onnx_graph import UnsupportedOperatorError, fold_batch_norms, to_onnx
from mnet_cli.models.registry import build_model
from mnet_cli.system.plugins import ARCHITECTURES

CPU = torch.device("cpu")


def lively(arch: str, **arguments) -> nn.Module:
    """A small network whose batch norms do something, as after training."""
    torch.manual_seed(0)
    model = build_model(arch, 3, width_mult=0.35, **arguments)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.3)
    return model.eval()


@pytest.mark.parametrize("arch", ARCHITECTURES.names())
@pytest.mark.parametrize("size", [64, 97])
def test_outputs_agree_with_the_module(arch, size):
    model = lively(arch)
    images = np.random.default_rng(0).normal(size=(11, 3, size, size)).astype(np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(images)).numpy()
    found = compile_forward(model, CPU)(images)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= 1e-4 * np.ptp(expected)


def test_reduced_tail_and_parts_of_a_network_run_too():
    model = lively("mobilenet_v3_small", reduced_tail=True)
    images = np.random.default_rng(0).normal(size=(2, 3, 64, 64)).astype(np.float32)
    with torch.no_grad():
        expected = model.features[:5](torch.from_numpy(images)).numpy()
    found = compile_forward(model.features[:5], CPU)(images)
    assert np.abs(found - expected).max() <= 1e-4 * np.ptp(expected)


def test_what_lies_above_a_boundary_runs_too():
    model = lively("mobilenet_v2")
    images = np.random.default_rng(0).normal(size=(2, 3, 64, 64)).astype(np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(images)).numpy()
    below = compile_forward(model.features[:7], CPU)
    above = compile_forward(
        nn.Sequential(*model.features[7:], model.pool, nn.Flatten(1), *model.classifier), CPU, None
    )
    assert np.abs(above(below(images)) - expected).max() <= 1e-4 * np.ptp(expected)


def test_a_forward_pass_can_be_sent_to_another_process():
    forward = compile_forward(lively("mobilenet_v1"), CPU)
    images = np.random.default_rng(0).normal(size=(3, 3, 64, 64)).astype(np.float32)
    assert np.array_equal(pickle.loads(pickle.dumps(forward))(images), forward(images))


def test_an_images_output_does_not_depend_on_its_batch():
    forward = compile_forward(lively("mobilenet_v2"), CPU)
    images = np.random.default_rng(0).normal(size=(21, 3, 64, 64)).astype(np.float32)
    together = forward(images)
    assert np.array_equal(together, np.concatenate([forward(images[:4]), forward(images[4:])]))


def test_the_model_is_left_as_it_was():
    model = lively("mobilenet_v1").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    compile_forward(model, CPU)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("arch", ARCHITECTURES.names())
def test_the_graph_is_valid_and_tells_nothing_of_its_origin(arch):
    content = to_onnx(lively(arch))
    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
    assert b"/mnet_cli/" not in content


def test_folding_removes_every_batch_norm_and_keeps_the_outputs():
    model = lively("mobilenet_v2")
    images = torch.randn(2, 3, 64, 64)
    folded = fold_batch_norms(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    with torch.no_grad():
        assert torch.allclose(folded(images), model(images), rtol=1e-3, atol=1e-4)


class Shortcut(nn.Sequential):
    """A sequence with a forward of its own, which uses its convolution twice."""

    def forward(self, x):
        return self[1](self[0](x)) + self[0](x)


def test_only_plain_sequences_are_folded():
    shared = nn.Conv2d(3, 3, 1)
    for module in (
        Shortcut(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)),
        nn.Sequential(shared, nn.BatchNorm2d(3), shared, nn.ReLU()),
        nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)),
    ):
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d) and part.track_running_stats:
                nn.init.uniform_(part.running_var, 2, 4)
        images = torch.randn(2, 3, 8, 8)
        with torch.no_grad():
            torch.testing.assert_close(fold_batch_norms(module)(images), module.eval()(images))


class Rows(nn.Module):
    """Flattens only the last two axes."""

    def forward(self, x):
        return x.flatten(2)


def test_what_no_mobilenet_has_is_refused():
    with pytest.raises(UnsupportedOperatorError, match=r"flatten\(2\)"):
        to_onnx(nn.Sequential(nn.Conv2d(3, 4, 1), Rows()))
    with pytest.raises(UnsupportedOperatorError, match="Tanh"):
        to_onnx(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Tanh()))


def test_one_thread_at_a_time_works_on_a_device_that_is_no_cpu(monkeypatch):
    class OnDevice:
        """A tensor and a network of a device that is not here."""

        def to(self, *args, **kwargs):
            return self

        def cpu(self):
            return torch.zeros(1)

        def __call__(self, inputs):
            at_work.append(threading.get_ident())
            time.sleep(0.002)
            overlaps.append(len(at_work))
            at_work.remove(threading.get_ident())
            return self

    at_work, overlaps = [], []
    monkeypatch.setattr(forward, "fold_batch_norms", lambda module: OnDevice())
    monkeypatch.setattr(forward.torch, "from_numpy", lambda array: OnDevice())
    classify = compile_forward(nn.Identity(), torch.device("mps"))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(classify, [np.zeros((1, 3, 8, 8), np.float32)] * 12))
    assert overlaps == [1] * 12


def test_mps_gets_torchs_own_memory_format_and_others_channels_last():
    formats = [image_format(torch.device(name)) for name in ("cpu", "cuda", "mps")]
    assert formats == [torch.channels_last, torch.channels_last, torch.contiguous_format]


@pytest.mark.parametrize(
    ("device", "pinned", "waits"),
    [("cuda", True, False), ("cuda", False, True), ("mps", True, True), ("cpu", True, True)],
)
def test_only_pinned_memory_is_copied_to_cuda_without_waiting(device, pinned, waits):
    class Batch:
        def is_pinned(self):
            return pinned

        def to(self, device, non_blocking):
            return non_blocking

    assert to_device(Batch(), torch.device(device)) is not waits


class Numpy(nn.Module):
    """Leaves PyTorch on the way, so that no graph can be made of it."""

    def forward(self, x):
        return torch.from_numpy(np.sort(x.numpy(), axis=1))


class Channels(nn.Module):
    """Puts the channels of a feature map last."""

    def forward(self, x):
        return x.permute(0, 2, 3, 1)


@pytest.mark.parametrize(
    ("module", "note"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), ""),
        (nn.Sequential(nn.Conv2d(3, 4, 3, dilation=2), nn.Tanh()), "torch.onnx"),
        (nn.Sequential(nn.Conv2d(3, 4, 1), Channels(), nn.Linear(4, 2)), "torch.onnx"),
        (nn.Sequential(nn.Conv2d(3, 4, 1), Numpy()), "PyTorch does"),
    ],
)
def test_a_network_of_others_runs_and_says_how(module, note):
    compiled = compile_forward(module.eval(), CPU, image_size=16)
    images = torch.randn(3, 3, 16, 16)
    with torch.inference_mode():
        expected = module(images).numpy()
    assert (note in compiled.note) if note else not compiled.note
    for one in (compiled, pickle.loads(pickle.dumps(compiled))):
        assert np.abs(one(images.numpy()) - expected).max() < 1e-4


class Bright(nn.Module):
    """Computes something else where an image is bright, which a traced graph would not do."""

    def forward(self, x):
        return -x if x.mean() > 1 else x


def test_a_branch_that_depends_on_the_images_runs_by_pytorch():
    compiled = compile_forward(nn.Sequential(nn.Conv2d(3, 4, 1), Bright()).eval(), CPU)
    assert "PyTorch does" in compiled.note


class Scaled(nn.Module):
    """Has a number that is neither a parameter nor printed."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, x):
        return x * self.scale


def test_the_fingerprint_follows_numbers_that_are_not_printed():
    one, two = (forward.fingerprint(nn.Sequential(Scaled(scale))) for scale in (1.0, 2.0))
    assert one != two == forward.fingerprint(nn.Sequential(Scaled(2.0)))


@pytest.mark.parametrize("first_out", ["first", "second"])
def test_the_number_of_threads_is_as_before_when_all_calls_have_ended(first_out):
    before = torch.get_num_threads()
    entered, leave = threading.Event(), threading.Event()

    def hold():
        with one_thread():
            entered.set()
            leave.wait(10)
        seen.append(torch.get_num_threads())

    seen: list[int] = []
    torch.set_num_threads(2)
    try:
        other = threading.Thread(target=hold)
        if first_out == "first":
            other.start()
            entered.wait(10)
            with one_thread():
                assert torch.get_num_threads() == 1
                leave.set()
                other.join()
                assert torch.get_num_threads() == 1
        else:
            with one_thread():
                other.start()
                entered.wait(10)
            leave.set()
            other.join()
        assert torch.get_num_threads() == 2
        assert seen == [2]
    finally:
        torch.set_num_threads(before)


def test_the_fingerprint_follows_weights_and_layers():
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Tanh())
    first = compile_forward(module, CPU, image_size=16).fingerprint
    assert compile_forward(module, CPU, image_size=16).fingerprint == first
    other = nn.Sequential(module[0], nn.Sigmoid())
    assert compile_forward(other, CPU, image_size=16).fingerprint != first
    with torch.no_grad():
        module[0].bias += 1
    assert compile_forward(module, CPU, image_size=16).fingerprint != first


def test_the_onnx_writer_is_not_used_on_other_devices(monkeypatch):
    def refuse(*_):
        raise AssertionError("the writer was called")

    monkeypatch.setattr(forward, "to_onnx", refuse)
    compiled = compile_forward(lively("mobilenet_v2"), torch.device("meta"))
    assert isinstance(compiled, forward.TorchForward)
    assert compiled.fingerprint
