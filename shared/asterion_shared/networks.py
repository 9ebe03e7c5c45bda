"""The networks a plan may name, each built from the plan alone."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from asterion_shared.errors import PlanMismatchError
from asterion_shared.plan import Plan
from asterion_shared.table_columns import table_width

# Shapes: B batch, C channels, K classes, N columns of a table; S the spatial axes.

_CONVOLUTION: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
_UPWARDS: dict[int, type[nn.ConvTranspose2d] | type[nn.ConvTranspose3d]] = {
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}
_MAXIMUM: dict[int, type[nn.MaxPool2d] | type[nn.MaxPool3d]] = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
_POOL: dict[int, type[nn.AdaptiveAvgPool2d] | type[nn.AdaptiveAvgPool3d]] = {
    2: nn.AdaptiveAvgPool2d,
    3: nn.AdaptiveAvgPool3d,
}


def build_network(plan: Plan) -> nn.Module:
    """Build the network that ``plan.model.name`` names; its first weights are torch's to draw.

    Raises:
        PlanMismatchError: the patch is too small for the network, or not divisible as it needs.
    """
    return _BUILDERS[plan.model.name](plan)


def _unet(plan: Plan) -> nn.Module:
    """MONAI's U-Net: (B, C, *S) to logits (B, K, *S)."""
    data, widths = plan.data, plan.model.widths
    if len(widths) < 2:
        msg = f"model.widths is {widths} and unet needs at least 2 levels; give 2 or more numbers"
        raise PlanMismatchError(msg)
    _check_divisible(plan, 2 ** (len(widths) - 1))
    from monai.networks.nets.unet import UNet  # MONAI takes seconds to load: only who needs it

    return UNet(
        spatial_dims=data.dimensions,
        in_channels=len(data.channels),
        out_channels=len(data.classes),
        channels=widths,
        strides=(2,) * (len(widths) - 1),
        num_res_units=1,
        # group norm fails here when the output has one channel: it also norms the last layer
        norm="INSTANCE",
        dropout=plan.model.dropout,
    )


def _densenet121(plan: Plan) -> nn.Module:
    """MONAI's DenseNet121, with batch norm: (B, C, *S) to logits (B, K)."""
    data = plan.data
    if min(data.patch_size) < 32:
        msg = (
            f"data.patch_size is {data.patch_size} and densenet121 halves it five times; "
            "make it at least 32 or choose model.name = 'residual'"
        )
        raise PlanMismatchError(msg)
    from monai.networks.nets.densenet import DenseNet121

    return DenseNet121(
        spatial_dims=data.dimensions,
        in_channels=len(data.channels),
        out_channels=len(data.classes),
        dropout_prob=plan.model.dropout,
    )


def _residual(plan: Plan) -> nn.Module:
    """Residual blocks with group norm, then the mean over space: (B, C, *S) to logits (B, K)."""
    data, widths = plan.data, plan.model.widths
    convolution, pool = _CONVOLUTION[data.dimensions], _POOL[data.dimensions]
    layers: list[nn.Module] = [convolution(len(data.channels), widths[0], 3, padding=1)]
    before = widths[0]
    for width in widths:
        layers.append(ResidualBlock(data.dimensions, before, width))
        before = width
    head = [pool(1), nn.Flatten(), nn.Dropout(plan.model.dropout)]
    return nn.Sequential(*layers, *head, nn.Linear(before, len(data.classes)))


class ResidualBlock(nn.Module):
    """Two convolutions with group norm beside a shortcut; halves every spatial axis.

    Source: He et al. 2016 (the block), Wu and He 2018 (group norm, which keeps no statistics of
    the site and works with any batch).
    """

    def __init__(self, dimensions: int, before: int, width: int) -> None:
        super().__init__()
        convolution = _CONVOLUTION[dimensions]
        self.main = nn.Sequential(
            convolution(before, width, 3, stride=2, padding=1, bias=False),
            _group_norm(width),
            nn.ReLU(),
            convolution(width, width, 3, padding=1, bias=False),
            _group_norm(width),
        )
        self.shortcut = convolution(before, width, 1, stride=2)

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, before, *S) to (B, width, *half of S, rounded up)."""
        added: Tensor = self.main(inputs) + self.shortcut(inputs)
        return added.relu()


def _cnn(plan: Plan) -> nn.Module:
    """Valid 3x3 convolutions, a 2x2 maximum, a hidden layer: (B, C, *S) to logits (B, K).

    The last of ``widths`` is the hidden layer's units, the others are the convolutions' channels;
    (32, 64, 128) is the network of many federated benchmarks (Reddi et al. 2021). The maximum
    is taken before the last bend, which gives the same numbers from a quarter of the points.
    """
    data, (*channels, hidden) = plan.data, plan.model.widths
    left = [size - 2 * len(channels) for size in data.patch_size]
    if not channels or min(left) < 2:
        msg = (
            f"model.widths is {plan.model.widths} and data.patch_size {data.patch_size}; cnn needs "
            "a convolution and a hidden layer, and 2 pixels a side beyond 2 for each convolution"
        )
        raise PlanMismatchError(msg)
    convolution = _CONVOLUTION[data.dimensions]
    layers: list[nn.Module] = []
    for before, width in zip([len(data.channels), *channels], channels, strict=False):
        layers += [convolution(before, width, 3), nn.ReLU()]
    layers.insert(-1, _MAXIMUM[data.dimensions](2))
    flat = channels[-1] * math.prod(size // 2 for size in left)
    head = [nn.Flatten(), nn.Linear(flat, hidden), nn.ReLU(), nn.Dropout(plan.model.dropout)]
    return nn.Sequential(*layers, *head, nn.Linear(hidden, len(data.classes)))


def _small_unet(plan: Plan) -> nn.Module:
    """A U-Net of few parameters with group norm: (B, C, *S) to logits (B, K, *S).

    Ronneberger et al. 2015, with group norm (Wu and He 2018) in place of batch norm.
    """
    data, widths = plan.data, plan.model.widths
    if len(widths) < 2:
        msg = f"model.widths is {widths} and small_unet needs at least 2 levels; give 2 or more"
        raise PlanMismatchError(msg)
    _check_divisible(plan, 2 ** (len(widths) - 1))
    return SmallUNet(data.dimensions, len(data.channels), len(data.classes), widths)


class SmallUNet(nn.Module):
    """Levels of two convolutions each; maxima on the way down, transposed convolutions up.

    Two classes have one output, the second's logit; the first's is fixed at 0, so that softmax
    cross-entropy is binary cross-entropy.

    Args:
        dimensions: 2 or 3.
        channels: C of the images.
        num_classes: K.
        widths: feature channels of each level, from the full grid downwards.
    """

    def __init__(
        self, dimensions: int, channels: int, num_classes: int, widths: Sequence[int]
    ) -> None:
        super().__init__()
        convolution, upwards = _CONVOLUTION[dimensions], _UPWARDS[dimensions]
        befores = [channels, *widths[:-1]]
        self.down = nn.ModuleList(
            _two_convolutions(convolution, before, width)
            for before, width in zip(befores, widths, strict=True)
        )
        steps_up = list(zip(reversed(widths[1:]), reversed(widths[:-1]), strict=True))
        self.rise = nn.ModuleList(upwards(low, high, 2, stride=2) for low, high in steps_up)
        self.up = nn.ModuleList(
            _two_convolutions(convolution, 2 * high, high) for _, high in steps_up
        )
        self.halve = _MAXIMUM[dimensions](2)
        self.join = Join()
        self.logits = convolution(widths[0], 1 if num_classes == 2 else num_classes, 1)
        self.zero_first = ZeroFirst() if num_classes == 2 else nn.Identity()

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, C, *S) to logits (B, K, *S)."""
        levels = [self.down[0](inputs)]
        for block in self.down[1:]:
            levels.append(block(self.halve(levels[-1])))
        found = levels.pop()
        for rise, block in zip(self.rise, self.up, strict=True):
            found = block(self.join(rise(found), levels.pop()))
        logits: Tensor = self.zero_first(self.logits(found))
        return logits


class Join(nn.Module):
    """Puts two maps of one grid side by side along the channels."""

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """(B, C1, *S) and (B, C2, *S) to (B, C1 + C2, *S)."""
        return torch.cat([one, other], 1)


class ZeroFirst(nn.Module):
    """Puts a logit of 0 before the only one there is."""

    def forward(self, logit: Tensor) -> Tensor:
        """(B, 1, *S) to (B, 2, *S)."""
        return functional.pad(logit, (0, 0) * (logit.ndim - 2) + (1, 0))


def _two_convolutions(
    convolution: type[nn.Conv2d] | type[nn.Conv3d], before: int, width: int
) -> nn.Sequential:
    return nn.Sequential(
        convolution(before, width, 3, padding=1),
        *_norm_and_bend(width),
        convolution(width, width, 3, padding=1),
        *_norm_and_bend(width),
    )


def _logistic(plan: Plan) -> nn.Module:
    """Logistic regression on the encoded columns or the pixels: (B, N) to logits (B, K).

    Images (B, C, *S) are flattened first.
    """
    dense = nn.Linear(_num_inputs(plan), len(plan.data.classes))
    return dense if plan.data.kind == "table" else nn.Sequential(nn.Flatten(), dense)


def _num_inputs(plan: Plan) -> int:
    """Columns of a row, or numbers of a flattened patch."""
    if plan.data.kind == "table":
        return table_width(plan.data)
    return len(plan.data.channels) * math.prod(plan.data.patch_size)


def _mlp(plan: Plan) -> nn.Module:
    """Fully connected layers on the encoded columns or the pixels: (B, N) to logits (B, K).

    Images (B, C, *S) are flattened first.
    """
    layers: list[nn.Module] = [] if plan.data.kind == "table" else [nn.Flatten()]
    before = _num_inputs(plan)
    for width in plan.model.widths:
        layers += [nn.Linear(before, width), nn.ReLU(), nn.Dropout(plan.model.dropout)]
        before = width
    return nn.Sequential(*layers, nn.Linear(before, len(plan.data.classes)))


def _conv_autoencoder(plan: Plan) -> nn.Module:
    """Convolutions down to a code and back: (B, C, *S) to (B, C, *S), S the patch size."""
    _check_divisible(plan, 2 ** len(plan.model.widths))
    return ConvAutoencoder(
        len(plan.data.channels), plan.data.patch_size, plan.model.widths, plan.model.code_size
    )


class ConvAutoencoder(nn.Module):
    """An autoencoder with one code for the whole patch.

    Args:
        channels: C of the images.
        patch_size: S, each divisible by 2 ** len(widths).
        widths: feature channels of each halving.
        code_size: length of the code.
    """

    def __init__(
        self, channels: int, patch_size: Sequence[int], widths: Sequence[int], code_size: int
    ) -> None:
        super().__init__()
        convolution = _CONVOLUTION[len(patch_size)]
        small = tuple(size // 2 ** len(widths) for size in patch_size)
        flat = widths[-1] * math.prod(small)
        down: list[nn.Module] = []
        before = channels
        for width in widths:
            down += [convolution(before, width, 3, stride=2, padding=1), *_norm_and_bend(width)]
            before = width
        self.encode = nn.Sequential(*down, nn.Flatten(), nn.Linear(flat, code_size))
        up: list[nn.Module] = []
        for width in (*reversed(widths[:-1]), widths[0]):
            up += [nn.Upsample(scale_factor=2), convolution(before, width, 3, padding=1)]
            up += _norm_and_bend(width)
            before = width
        unfold = nn.Unflatten(1, (widths[-1], *small))
        self.expand = nn.Sequential(nn.Linear(code_size, flat), nn.ReLU(), unfold)
        self.decode = nn.Sequential(*up, convolution(before, channels, 3, padding=1))

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, C, *S) to its reconstruction, same shape."""
        rebuilt: Tensor = self.decode(self.expand(self.encode(inputs)))
        return rebuilt


def _norm_and_bend(width: int) -> list[nn.Module]:
    return [_group_norm(width), nn.ReLU()]


def _group_norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(width, 4), width)


def _check_divisible(plan: Plan, by: int) -> None:
    """A patch must halve evenly, and leave more than one point for the norm."""
    patch = plan.data.patch_size
    if any(size % by for size in patch) or math.prod(patch) <= by ** len(patch):
        msg = (
            f"data.patch_size is {patch} and {plan.model.name} with {len(plan.model.widths)} "
            f"widths needs multiples of {by}, not all {by}; change it or give fewer widths"
        )
        raise PlanMismatchError(msg)


_BUILDERS: dict[str, Callable[[Plan], nn.Module]] = {
    "unet": _unet,
    "small_unet": _small_unet,
    "cnn": _cnn,
    "residual": _residual,
    "densenet121": _densenet121,
    "logistic": _logistic,
    "mlp": _mlp,
    "conv_autoencoder": _conv_autoencoder,
}
