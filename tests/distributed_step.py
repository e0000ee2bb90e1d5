"""Run by torchrun from test_training_distributed.py: steps of all processes against those of one.

Everything is in double precision, so that only mistakes make a difference.
"""

import sys

import torch
from torch import nn
from torchvision.transforms import v2

from mnet_cli.system.process_group import join_group
from mnet_cli.training.distributed import part_of, share_of, sum_gradients

CLASSES, SIDE = 3, 8


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout2d(0.2),
        nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6).requires_grad_(False).eval(), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.BatchNorm1d(6, affine=False),
        nn.Linear(6, CLASSES),
    ).double()  # fmt: skip


def train(model, group, count, *, mix, weights, steps=4):
    """Losses of some steps; without a group those of one process that has all images."""
    criterion = nn.CrossEntropyLoss(weights, label_smoothing=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for step in range(steps):
        data = torch.Generator().manual_seed(step)
        images = torch.randn(count, 3, SIDE, SIDE, generator=data, dtype=torch.double)
        labels = torch.randint(CLASSES, (count,), generator=data)
        torch.manual_seed(100 + step)
        if group is None:
            if mix:
                images, labels = mix(images, labels)
            loss = criterion(model(images), labels)
            loss.backward()
        else:
            part = part_of(count, group)
            share = share_of(part, group, criterion, labels, mixed=mix is not None)
            places = part.indices(part.extra if mix else 0)
            images, labels = images[places], labels[places]
            if mix:
                images, labels = mix(images, labels)
                images, labels = images[part.extra :], labels[part.extra :]
            with share.forward:
                loss = criterion(model(images), labels) * share.weight
            loss.backward()
            loss = sum_gradients(model, loss, group)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


with join_group() as group:
    assert group.size == int(sys.argv[1])
    mixes = {
        "none": None,
        "mixup": v2.MixUp(alpha=0.4, num_classes=CLASSES),
        "cutmix": v2.CutMix(alpha=1.0, num_classes=CLASSES),
    }
    by_class = torch.tensor([1.0, 2.0, 5.0], dtype=torch.double)
    cases = [(count, name, None) for count in (8, 7) for name in mixes]
    cases += [(7, "none", by_class), (2, "none", None)]
    for count, name, weights in cases:
        alone, together = network(), network()
        expected = train(alone, None, count, mix=mixes[name], weights=weights)
        found = train(together, group, count, mix=mixes[name], weights=weights)
        case = f"{count} images, {name}, weights {weights}"
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9, msg=case)
        for tensor, other in zip(
            together.state_dict().values(), alone.state_dict().values(), strict=True
        ):
            torch.testing.assert_close(tensor, other, rtol=1e-9, atol=1e-9, msg=case)
    assert group.gather(group.rank) == list(range(group.size))
    assert group.from_main(lambda: group.rank) == 0
    if group.is_main:
        sys.stdout.write("as one process\n")
