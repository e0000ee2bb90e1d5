"""The training loops that mnet is compared with, written as their users write them.

Usage: python scripts/peers.py NAME ROOT WEIGHTS [EPOCHS]

Each is a whole process, from the imports to the exit, with torchvision's own model and data
pipeline, and prints one line of JSON: images seen, and top-1 on ROOT/val where it has one.
`bench.py` runs them.
"""

import json
import os
import sys
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import models, transforms
from torchvision.datasets import ImageFolder

NORMALIZE = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
TRAIN = transforms.Compose(
    [
        transforms.RandomResizedCrop(224),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        NORMALIZE,
    ]
)
VAL = transforms.Compose(
    [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), NORMALIZE]
)


def pretrained(weights: str, classes: int) -> nn.Module:
    """Torchvision's V2 with its ImageNet weights and a new head."""
    model = models.mobilenet_v2()
    model.load_state_dict(torch.load(weights, weights_only=True))
    model.classifier[1] = nn.Linear(1280, classes)
    return model


def loader(
    root: str, transform: Callable[..., object], batch_size: int, *, train: bool
) -> DataLoader[object]:
    """ImageFolder in torch's loader, with as many workers as cores."""
    return DataLoader(
        ImageFolder(root, transform),
        batch_size,
        shuffle=train,
        num_workers=min(os.cpu_count() or 1, 8),
    )


def top1(model: nn.Module, val: DataLoader[object]) -> float:
    """Share of the validation images that the model gets right."""
    model.eval()
    right = 0
    with torch.no_grad():
        for images, labels in val:
            right += int((model(images).argmax(1) == labels).sum())
    return right / len(val.dataset)  # type: ignore[arg-type]


def classic(root: str, weights: str, epochs: int = 5, *, tuned: bool = False) -> dict[str, float]:
    """The flower tutorial: frozen features, batch 16, Adam 1e-4, the best epoch saved.

    Tuned, it has what torchvision's references and the manual add for speed: channels last, and
    workers that stay.
    """
    torch.manual_seed(0)
    train = loader(f"{root}/train", TRAIN, 16, train=True)
    val = loader(f"{root}/val", VAL, 16, train=False)
    model = pretrained(weights, len(train.dataset.classes))  # type: ignore[attr-defined]
    for parameter in model.features.parameters():
        parameter.requires_grad_(False)
    if tuned:
        model = model.to(memory_format=torch.channels_last)
        train, val = (
            DataLoader(
                a.dataset,
                16,
                shuffle=a is train,
                num_workers=a.num_workers,
                persistent_workers=True,
            )
            for a in (train, val)
        )
    optimizer = torch.optim.Adam(model.classifier.parameters(), lr=1e-4)
    best = 0.0
    for _ in range(epochs):
        model.train()
        for images, labels in train:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            loss.item()  # the tutorial shows it in a bar
        score = top1(model, val)
        if score > best:
            best = score
            torch.save(model.state_dict(), os.devnull)
    return {"images": epochs * (len(train.dataset) + len(val.dataset)), "top1": best}


def tuned(root: str, weights: str, epochs: int = 5) -> dict[str, float]:
    """`classic`, tuned for speed."""
    return classic(root, weights, epochs, tuned=True)


def unfrozen(root: str, weights: str, epochs: int = 1) -> dict[str, float]:
    """An epoch of torchvision's reference training: everything learns, SGD, batch 32."""
    torch.manual_seed(0)
    train = loader(f"{root}/train", TRAIN, 32, train=True)
    val = loader(f"{root}/val", VAL, 32, train=False)
    model = pretrained(weights, len(train.dataset.classes))  # type: ignore[attr-defined]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    for _ in range(epochs):
        model.train()
        for images, labels in train:
            loss = criterion(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
    return {"images": epochs * len(train.dataset) + len(val.dataset), "top1": top1(model, val)}


def predict(root: str, weights: str) -> dict[str, float]:
    """Classes of every image below ROOT, by batches of 32."""
    model = pretrained(weights, 5).eval()
    images = 0
    for split in ("train", "val"):
        batches = loader(f"{root}/{split}", VAL, 32, train=False)
        with torch.inference_mode():
            for batch, _ in batches:
                images += len(model(batch).softmax(1).argmax(1))
    return {"images": images}


def timm(root: str, weights: str, epochs: int = 5) -> dict[str, float]:
    """`classic` with timm's loaders, transforms and optimizer."""
    from timm.data import create_dataset, create_loader
    from timm.optim import create_optimizer_v2

    torch.manual_seed(0)
    workers = min(os.cpu_count() or 1, 8)
    train, val = (
        create_loader(
            create_dataset("", root=f"{root}/{split}"),
            (3, 224, 224),
            16,
            is_training=split == "train",
            num_workers=workers,
            use_prefetcher=False,
            interpolation="bilinear",
            crop_pct=224 / 256,
            device=torch.device("cpu"),
        )
        for split in ("train", "val")
    )
    model = pretrained(weights, len(train.dataset.reader.class_to_idx))
    for parameter in model.features.parameters():
        parameter.requires_grad_(False)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.01)
    best = 0.0
    for _ in range(epochs):
        model.train()
        for images, labels in train:
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        best = max(best, top1(model, val))
    return {"images": epochs * (len(train.dataset) + len(val.dataset)), "top1": best}


def fastai(root: str, weights: str, epochs: int = 5) -> dict[str, float]:
    """Fastai's vision learner: the body frozen but for its batch norms, one-cycle."""
    from fastai.vision.all import (
        ImageDataLoaders,
        Learner,
        Normalize,
        RandomResizedCrop,
        accuracy,
        create_head,
        default_split,
        imagenet_stats,
        set_seed,
    )

    set_seed(0)
    data = ImageDataLoaders.from_folder(
        root,
        train="train",
        valid="val",
        item_tfms=RandomResizedCrop(224),
        batch_tfms=Normalize.from_stats(*imagenet_stats),
        bs=16,
        num_workers=min(os.cpu_count() or 1, 8),
        device=torch.device("cpu"),
    )
    body = pretrained(weights, 1000).features
    network = nn.Sequential(body, create_head(1280, len(data.vocab)))
    learner = Learner(data, network, splitter=default_split, metrics=accuracy)
    learner.freeze()
    with learner.no_bar(), learner.no_logging():
        learner.fit_one_cycle(epochs, 3e-3)
    scores = [row[2] for row in learner.recorder.values]
    return {"images": epochs * (len(data.train_ds) + len(data.valid_ds)), "top1": max(scores)}


def ultralytics(root: str, weights: str, epochs: int = 5) -> dict[str, float]:
    """Ultralytics' nano classifier, its own network and weights from scratch: time alone."""
    from ultralytics import YOLO

    result = YOLO("yolo11n-cls.yaml").train(
        data=root,
        epochs=epochs,
        imgsz=224,
        batch=16,
        freeze=10,
        device="cpu",
        workers=min(os.cpu_count() or 1, 8),
        plots=False,
        verbose=False,
        project=os.environ.get("XDG_CACHE_HOME", "."),
    )
    counted = sum(len(ImageFolder(f"{root}/{split}")) for split in ("train", "val"))
    return {"images": epochs * counted, "top1_from_scratch": float(result.top1)}


PEERS = {
    "classic": classic,
    "tuned": tuned,
    "timm": timm,
    "fastai": fastai,
    "ultralytics": ultralytics,
    "unfrozen": unfrozen,
    "predict": predict,
}

if __name__ == "__main__":
    name, *rest = sys.argv[1:]
    result = PEERS[name](*rest[:2], *map(int, rest[2:]))
    sys.stdout.write(json.dumps(result) + "\n")
