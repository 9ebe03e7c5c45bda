"""The networks a plan may name, each built from the plan alone."""

import math
from collections.abc import Callable, Sequence

from monai.networks.nets.densenet import DenseNet121
from monai.networks.nets.unet import UNet
from torch import Tensor, nn

from asterion_shared.errors import PlanMismatchError
from asterion_shared.plan import Plan
from asterion_shared.table_columns import table_width

# Shapes: B batch, C channels, K classes, N columns of a table; S the spatial axes.

_CONVOLUTION: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
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


def _logistic(plan: Plan) -> nn.Module:
    """Logistic regression on the encoded columns: (B, N) to logits (B, K)."""
    return nn.Linear(table_width(plan.data), len(plan.data.classes))


def _mlp(plan: Plan) -> nn.Module:
    """Fully connected layers on the encoded columns: (B, N) to logits (B, K)."""
    layers: list[nn.Module] = []
    before = table_width(plan.data)
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
        self._small = (widths[-1], *small)
        flat = math.prod(self._small)
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
        self.expand = nn.Sequential(nn.Linear(code_size, flat), nn.ReLU())
        self.decode = nn.Sequential(*up, convolution(before, channels, 3, padding=1))

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, C, *S) to its reconstruction, same shape."""
        code = self.encode(inputs)
        rebuilt: Tensor = self.decode(self.expand(code).unflatten(1, self._small))
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
    "residual": _residual,
    "densenet121": _densenet121,
    "logistic": _logistic,
    "mlp": _mlp,
    "conv_autoencoder": _conv_autoencoder,
}
