"""The table of published weights against what the publishers' own packages say."""

from dataclasses import replace

import pytest

from mnet_cli.errors import RecipeError, WeightsError
from mnet_cli.models import registry
from mnet_cli.models.registry import find_architecture, published
from mnet_cli.system.plugins import ARCHITECTURES

PUBLISHED = [
    (arch, row) for arch in ARCHITECTURES.names() for row in find_architecture(arch).published
]


def rows_of(source: str) -> list:
    rows = [(arch, row) for arch, row in PUBLISHED if row.source == source]
    assert rows
    return rows


def test_torchvision_rows_are_torchvisions():
    models = pytest.importorskip("torchvision.models")
    for arch, row in rows_of("torchvision"):
        weights = models.get_model_weights(arch)[row.release]
        transforms = weights.transforms()
        assert row.url == weights.url
        assert row.width_mult == 1.0
        assert row.top1 == weights.meta["_metrics"]["ImageNet-1K"]["acc@1"]
        assert row.interpolation == transforms.interpolation.value
        assert row.crop_ratio == transforms.crop_size[0] / transforms.resize_size[0]
        assert (list(row.mean), list(row.std)) == (transforms.mean, transforms.std)


def test_every_release_of_torchvision_is_listed():
    models = pytest.importorskip("torchvision.models")
    for arch in ("mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small"):
        ours = [row.release for name, row in rows_of("torchvision") if name == arch]
        assert ours == [weights.name for weights in models.get_model_weights(arch)]


def test_timm_rows_are_timms():
    timm = pytest.importorskip("timm")
    for _, row in rows_of("timm"):
        config = timm.models.get_pretrained_cfg(row.release)
        assert row.url == config.url or f"/{config.hf_hub_id}/resolve/" in row.url
        assert row.interpolation == config.interpolation
        assert row.crop_ratio == config.crop_pct
        assert (row.mean, row.std) == (config.mean, config.std)
        assert config.input_size == (3, row.image_size, row.image_size)
        width = row.release.partition(".")[0].rpartition("_")[2]
        assert row.width_mult == (int(width) / 100 if width.isdecimal() else 1.0)


def test_every_file_is_fetched_over_https_and_has_a_hash_and_a_name_of_its_own():
    for _, row in PUBLISHED:
        assert row.url.startswith("https://")
        assert len(row.sha256) in (0, 64) or f"-{row.sha256}.pth" in row.url
    assert len({row.file_name for _, row in PUBLISHED}) == len(PUBLISHED)
    hashes = [row.sha256 for _, row in PUBLISHED if row.sha256]
    assert len(set(hashes)) == len(hashes)


def test_a_file_without_a_known_hash_is_not_downloaded(monkeypatch):
    v2 = find_architecture("mobilenet_v2")
    unknown = replace(v2, published=(replace(v2.published[0], sha256=""),))
    monkeypatch.setattr(registry, "find_architecture", lambda arch: unknown)
    with pytest.raises(WeightsError, match=r"hash.*not known.*Download https"):
        published("mobilenet_v2", unknown.published[0].width_mult)


def test_imagenet_is_the_newest_release_and_imagenet_v1_the_first():
    assert published("mobilenet_v2", 1.0, "imagenet").release == "IMAGENET1K_V2"
    assert published("mobilenet_v2", 1.0, "imagenet-v1").release == "IMAGENET1K_V1"
    assert published("mobilenet_v3_small", 1.0).release == "IMAGENET1K_V1"
    assert published("mobilenet_v3_large", 1.0).release == "IMAGENET1K_V2"


def test_widths_with_weights_are_ascending():
    assert find_architecture("mobilenet_v1").widths == [1.0, 1.25]
    assert find_architecture("mobilenet_v2").widths == [0.5, 1.0, 1.4]
    assert find_architecture("mobilenet_v3_small").widths == [1.0]


def test_a_width_without_weights_is_refused_with_the_widths_that_have_some():
    with pytest.raises(RecipeError, match=r"mobilenet_v2 at width_mult 0\.75.*0\.5, 1, 1\.4.*none"):
        published("mobilenet_v2", 0.75)
