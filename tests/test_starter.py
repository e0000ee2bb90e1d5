"""The starter weights: small enough to ship, and worth more than random ones."""

import numpy as np
import torch

from mnet_cli.data.preprocess import Preprocess, eval_array
from mnet_cli.data.sample import CLASS_NAMES, draw_flower
from mnet_cli.models.registry import build_model, find_architecture
from mnet_cli.models.weights import find_weights, load_matching

ARCH = "mobilenet_v2"
STARTER = find_architecture(ARCH).starter
PLAIN = Preprocess(96, 96, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (255,) * 3)


def drawn(per_class: int, first_seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    images = [
        eval_array(draw_flower(name, first_seed + number, 96), PLAIN)
        for name in CLASS_NAMES
        for number in range(per_class)
    ]
    return torch.from_numpy(np.stack(images)), torch.arange(5).repeat_interleave(per_class)


def accuracy_of_a_linear_layer(model, train, val) -> float:
    """Fit one linear layer on frozen features and score it on other pictures."""
    with torch.inference_mode():
        features, held_out = (model.eval().features(x).mean((2, 3)) for x in (train[0], val[0]))
    features, held_out = features.clone(), held_out.clone()
    mean, std = features.mean(0), features.std(0) + 1e-6
    features, held_out = (features - mean) / std, (held_out - mean) / std
    layer = torch.nn.Linear(features.shape[1], 5)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(100):
        loss = torch.nn.functional.cross_entropy(layer(features), train[1])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return (layer(held_out).argmax(1) == val[1]).float().mean().item()


def test_starter_features_beat_random_features_on_drawn_flowers_by_far():
    torch.manual_seed(0)
    train, val = drawn(16, 0), drawn(16, 1000)
    model = build_model(ARCH, 5, width_mult=STARTER.width_mult)
    random = accuracy_of_a_linear_layer(model, train, val)
    account = load_matching(model, find_weights("starter", ARCH, STARTER.width_mult))
    starter = accuracy_of_a_linear_layer(model, train, val)
    assert account.missing == ("classifier.1.weight", "classifier.1.bias")
    assert starter > 0.8
    assert starter > random + 0.25


def test_starter_fits_into_a_megabyte():
    assert STARTER.path.stat().st_size < 1_000_000
