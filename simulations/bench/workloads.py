"""The benchmark's workloads: data, the order of the sites, and networks for the peers.

Every runner trains on the same bytes, in the same order of sites and batches, from the same first
weights, without dropout: all have to end at the same loss. The numbers are those of
pfl-research's CIFAR10 benchmark (Granqvist et al. 2024) on generated images; three smaller
networks show what is left when the arithmetic is cheap.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

# Shapes: N examples, C channels, H and W pixels.

Floats = npt.NDArray[np.float32]
ROOT = Path(__file__).parents[2]
BENCH_FOLDER = ROOT / "runs" / "bench"
DATA_FOLDER = BENCH_FOLDER / "data"
CHUNK = 5000
"""Examples drawn at a time; part of which bytes come out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One task over many equal sites.

    Attributes:
        name: of the workload, also its network's.
        image_shape: (C, H, W) of one example.
        flat: whether the network reads an example as one row of C * H * W numbers.
        num_classes: 1 for segmentation of one kind of object.
        num_sites: virtual sites; each has ``examples_per_site`` examples.
        sites_per_round: sites trained in a round, one pass in ``batch_size`` at ``learning_rate``.
        hidden_units: of the network ``mlp``.
        num_evaluation: held-out examples of the final loss.
        seed: of the data, the order and the first weights.
    """

    name: str
    image_shape: tuple[int, int, int]
    flat: bool
    num_classes: int
    num_sites: int = 1000
    examples_per_site: int = 50
    sites_per_round: int = 50
    batch_size: int = 10
    learning_rate: float = 0.1
    hidden_units: int = 200
    num_evaluation: int = 500
    seed: int = 0

    @property
    def segmentation(self) -> bool:
        """Whether every pixel has a class."""
        return self.num_classes == 1

    @property
    def input_shape(self) -> tuple[int, ...]:
        """One example as the network reads it."""
        return (int(np.prod(self.image_shape)),) if self.flat else self.image_shape

    @property
    def site_names(self) -> list[str]:
        """Names of the sites, in the order of their examples."""
        return [f"site_{number:05d}" for number in range(self.num_sites)]


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(name="cnn", image_shape=(3, 32, 32), flat=False, num_classes=10),
        Workload(name="mlp", image_shape=(1, 28, 28), flat=True, num_classes=10),
        Workload(name="logreg", image_shape=(1, 28, 28), flat=True, num_classes=10),
        Workload(name="unet", image_shape=(1, 32, 32), flat=False, num_classes=1),
        # Two numbers an example, one example a site, all sites in each round: what is left is
        # the cost of asking a site at all.
        Workload(name="empty", image_shape=(1, 1, 2), flat=True, num_classes=2,
                 examples_per_site=1, sites_per_round=1000, batch_size=1),
    )
}  # fmt: skip


def cohort(workload: Workload, round_: int) -> list[int]:
    """Numbers of the sites that train in a round (counted from 0), in their order."""
    generator = np.random.default_rng([workload.seed, 1000 + round_])
    chosen = generator.choice(workload.num_sites, workload.sites_per_round, replace=False)
    return [int(number) for number in chosen]


# Data


@dataclass(frozen=True, slots=True)
class Examples:
    """Examples side by side.

    Attributes:
        images: float32, (N, C, H, W).
        targets: int64 (N,) class numbers; for segmentation float32 (N, 1, H, W) of 0 and 1.
    """

    images: Floats
    targets: npt.NDArray[Any]


def draw_examples(workload: Workload) -> Iterator[Examples]:
    """All examples of the sites in chunks, then in one piece those of the evaluation.

    Classification: an image is its class's pattern plus noise of deviation 1. Segmentation: a
    smooth field plus noise of deviation 0.5; the object is where the field is above 0.3.
    """
    generator = np.random.default_rng(workload.seed)
    patterns = None if workload.segmentation else _patterns(workload, generator)
    total = workload.num_sites * workload.examples_per_site
    sizes = [min(CHUNK, total - start) for start in range(0, total, CHUNK)]
    for size in (*sizes, workload.num_evaluation):
        if patterns is None:
            field = _smooth_fields(generator, size, workload.image_shape)
            images = field + 0.5 * _normal(generator, field.shape)
            yield Examples(images.astype(np.float32), (field > 0.3).astype(np.float32))
        else:
            labels = generator.integers(0, workload.num_classes, size)
            images = patterns[labels] + _normal(generator, (size, *workload.input_shape))
            yield Examples(images.reshape(size, *workload.image_shape), labels)


def _normal(generator: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    return generator.standard_normal(shape, dtype=np.float32)


def _patterns(workload: Workload, generator: np.random.Generator) -> Floats:
    if workload.flat:
        return np.float32(0.15) * _normal(generator, (workload.num_classes, *workload.input_shape))
    return np.float32(0.5) * _smooth_fields(generator, workload.num_classes, workload.image_shape)


def _smooth_fields(
    generator: np.random.Generator, count: int, shape: tuple[int, int, int]
) -> Floats:
    channels, height, width = shape
    coarse = _normal(generator, (count, channels, 5, 5))
    fine = functional.interpolate(
        torch.from_numpy(coarse), size=(height, width), mode="bilinear", align_corners=True
    )
    return fine.numpy()


def prepare(workload: Workload, parent: Path = DATA_FOLDER) -> Path:
    """Write a workload's files, once, and return their folder.

    ``pool/`` is what ``asterion simulate`` reads (``images.npy``, ``labels.npy`` or ``masks.npy``,
    ``site.npy``); ``targets.npy`` what the peers learn; ``evaluation/`` the held-out examples.
    """
    folder = parent / f"{workload.name}-{workload.num_sites}x{workload.examples_per_site}"
    if folder.exists():
        return folder
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    (temporary / "pool").mkdir(parents=True)
    (temporary / "evaluation").mkdir()
    total = workload.num_sites * workload.examples_per_site
    # Mapped, so that only one chunk is ever in memory.
    images = np.lib.format.open_memmap(
        temporary / "pool" / "images.npy", "w+", np.float32, (total, *workload.image_shape)
    )
    targets: list[npt.NDArray[Any]] = []
    done = 0
    for examples in draw_examples(workload):
        if done == total:
            np.save(temporary / "evaluation" / "images.npy", examples.images)
            np.save(temporary / "evaluation" / "targets.npy", examples.targets)
            break
        images[done : done + len(examples.images)] = examples.images
        targets.append(examples.targets)
        done += len(examples.images)
    images.flush()
    every_target = np.concatenate(targets)
    np.save(temporary / "targets.npy", every_target)
    if workload.segmentation:
        np.save(temporary / "pool" / "masks.npy", every_target[:, 0].astype(np.int16))
    else:
        np.save(temporary / "pool" / "labels.npy", every_target)
    np.save(
        temporary / "pool" / "site.npy", np.repeat(workload.site_names, workload.examples_per_site)
    )
    temporary.rename(folder)
    return folder


def site_tensors(workload: Workload, parent: Path = DATA_FOLDER) -> tuple[Tensor, Tensor]:
    """Inputs (sites, examples, *input) and targets (sites, examples, ...), mapped from the files.

    Nobody may write to them.
    """
    folder = prepare(workload, parent)
    inputs = _mapped(folder / "pool" / "images.npy")
    targets = _mapped(folder / "targets.npy")
    sites = (workload.num_sites, workload.examples_per_site)
    return inputs.reshape(*sites, *workload.input_shape), targets.reshape(
        *sites, *targets.shape[1:]
    )


def _mapped(path: Path) -> Tensor:
    # Copy on write: torch has no read-only tensors and would warn.
    return torch.from_numpy(np.load(path, mmap_mode="c"))


# Networks


class SmallCnn(nn.Module):
    """Two valid 3x3 convolutions, a 2x2 maximum pool, two dense layers: 1,626,442 weights."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        channels, height, width = workload.image_shape
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)
        )
        flat = 64 * ((height - 4) // 2) * ((width - 4) // 2)
        self.dense = nn.Sequential(
            nn.Linear(flat, 128), nn.ReLU(), nn.Linear(128, workload.num_classes)
        )

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) to logits (N, classes)."""
        logits: Tensor = self.dense(self.convolutions(images).flatten(1))
        return logits


class SmallUnet(nn.Module):
    """Two levels with group norm, features 8, 16 and 32: 29,641 weights."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.fine = _convolution_pair(workload.image_shape[0], 8)
        self.coarse = _convolution_pair(8, 16)
        self.bottom = _convolution_pair(16, 32)
        self.up_to_coarse = nn.ConvTranspose2d(32, 16, 2, stride=2)
        self.coarse_again = _convolution_pair(32, 16)
        self.up_to_fine = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.fine_again = _convolution_pair(16, 8)
        self.head = nn.Conv2d(8, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) to logits of the object (N, 1, H, W)."""
        fine = self.fine(images)
        coarse = self.coarse(functional.max_pool2d(fine, 2))
        bottom = self.bottom(functional.max_pool2d(coarse, 2))
        coarse = self.coarse_again(torch.cat((self.up_to_coarse(bottom), coarse), dim=1))
        fine = self.fine_again(torch.cat((self.up_to_fine(coarse), fine), dim=1))
        logits: Tensor = self.head(fine)
        return logits


def _convolution_pair(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1), nn.GroupNorm(4, after), nn.ReLU(),
        nn.Conv2d(after, after, 3, padding=1), nn.GroupNorm(4, after), nn.ReLU(),
    )  # fmt: skip


def initial_network(workload: Workload) -> nn.Module:
    """The workload's network with its first weights: Xavier (Glorot and Bengio 2010), bias 0.

    Transposed convolutions keep torch's own first weights.
    """
    torch.manual_seed(workload.seed)
    network = _network(workload)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network


def _network(workload: Workload) -> nn.Module:
    match workload.name:
        case "cnn":
            return SmallCnn(workload)
        case "unet":
            return SmallUnet(workload)
        case "mlp":
            inputs, hidden = workload.input_shape[0], workload.hidden_units
            return nn.Sequential(
                nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, workload.num_classes)
            )
        case _:
            return nn.Sequential(nn.Linear(workload.input_shape[0], workload.num_classes))


def mean_loss(workload: Workload, logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy, or for segmentation its two-class form on one logit; mean over all points."""
    if workload.segmentation:
        return functional.binary_cross_entropy_with_logits(logits, targets)
    return functional.cross_entropy(logits, targets)


def final_loss(workload: Workload, network: nn.Module, parent: Path = DATA_FOLDER) -> float:
    """The loss of a network on the workload's held-out examples, in float32."""
    folder = prepare(workload, parent) / "evaluation"
    images = torch.from_numpy(np.load(folder / "images.npy"))
    targets = torch.from_numpy(np.load(folder / "targets.npy"))
    network.eval()
    with torch.no_grad():
        logits = network(images.reshape(-1, *workload.input_shape))
        return float(mean_loss(workload, logits, targets))


def flops_per_site(workload: Workload) -> int:
    """Floating-point operations of one site's pass: products and convolutions, both ways.

    A multiply-add counts as two. No gradient is formed for the images.
    """
    network = initial_network(workload)
    inputs = torch.zeros(workload.batch_size, *workload.input_shape)
    with FlopCounterMode(display=False) as counter:
        network(inputs).sum().backward()
    return counter.get_total_flops() * workload.examples_per_site // workload.batch_size
