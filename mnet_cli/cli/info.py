"""`mnet info`."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from mnet_cli.cli import console
from mnet_cli.errors import UsageError
from mnet_cli.system.plugins import ARCHITECTURES

if TYPE_CHECKING:
    from mnet_cli.models.summary import Summary


def info(
    arch: Annotated[
        str | None, typer.Argument(help=f"One of {', '.join(ARCHITECTURES.names())}.")
    ] = None,
    width_mult: Annotated[
        float, typer.Option(min=0.05, max=4, help="Width multiplier (alpha).")
    ] = 1.0,
    image_size: Annotated[
        int, typer.Option(min=32, max=1024, help="Side of the input image in pixels.")
    ] = 224,
    round_nearest: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=64,
            help="Round numbers of channels to a multiple of this.",
            show_default="the architecture's",
        ),
    ] = None,
    reduced_tail: Annotated[
        bool, typer.Option("--reduced-tail", help="Halve the last stage (V3).")
    ] = False,
    weights: Annotated[
        bool, typer.Option("--weights", help="List the published weights instead.")
    ] = False,
) -> None:
    """Show an architecture layer by layer with parameters and multiply-adds."""
    if weights:
        _show_weights(arch)
        return
    if arch is None:
        raise UsageError(
            "mnet info",
            "no architecture",
            next_step=f"Name one of {', '.join(ARCHITECTURES.names())}, or add --weights",
        )
    from mnet_cli.models.registry import build_model, find_architecture
    from mnet_cli.models.summary import summarize

    model = build_model(
        arch,
        1000,
        width_mult=width_mult,
        round_nearest=round_nearest,
        reduced_tail=reduced_tail,
    )
    summary = summarize(model, image_size)
    document = {
        "arch": arch,
        "width_mult": width_mult,
        "image_size": image_size,
        "parameters": summary.parameters,
        "macs": summary.macs,
        "layers": [asdict(row) for row in summary.layers],
        "separable": [
            asdict(cost) | {"share": cost.share, "formula": cost.formula}
            for cost in summary.separable
        ],
    }
    architecture = find_architecture(arch)
    title = (
        f"{architecture.title} ({architecture.paper}), width_mult {width_mult:g}, "
        f"{image_size}x{image_size}, 1000 classes"
    )
    console.show(document, lambda: _show_summary(title, summary))


def _show_summary(title: str, summary: "Summary") -> None:
    console.table(
        ("layer", "input", "operator", ">t", ">c", ">s", "activation", "SE", ">params", ">MACs"),
        [
            (
                row.name,
                row.input,
                row.operator,
                "" if row.expansion is None else f"{row.expansion:.3g}",
                row.channels,
                row.stride or "",
                row.activation or "",
                "yes" if row.squeeze_excitation else "",
                f"{row.parameters:,}",
                f"{row.macs:,}",
            )
            for row in summary.layers
        ],
        title=title,
    )
    console.table(
        ("depthwise separable pair", ">D_K", ">M", ">N", ">MACs", ">share", ">1/N + 1/D_K²"),
        [
            (
                cost.name,
                cost.kernel,
                cost.in_channels,
                cost.out_channels,
                f"{cost.macs:,}",
                f"{cost.share:.4f}",
                f"{cost.formula:.4f}",
            )
            for cost in summary.separable
        ],
        title="cost as a share of the standard convolution's",
    )
    console.line(f"{summary.parameters:,} parameters, {summary.macs:,} MACs an image")


def _show_weights(arch: str | None) -> None:
    from mnet_cli.models.registry import find_architecture

    named = [(arch, find_architecture(arch))] if arch else ARCHITECTURES.usable()
    rows = [
        {"arch": name, **asdict(row), "file_name": row.file_name}
        for name, architecture in named
        for row in architecture.published
    ]
    console.show(
        rows,
        lambda: console.table(
            ("arch", ">width_mult", "release", ">top-1", ">pixels", "file", "from"),
            [
                (
                    row["arch"],
                    f"{row['width_mult']:g}",
                    row["release"],
                    f"{row['top1']:.1f}%",
                    row["image_size"],
                    row["file_name"],
                    row["source"],
                )
                for row in rows
            ],
            title="published ImageNet weights",
        ),
    )
