"""What one optimiser step learns from."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples side by side; B of them, of C channels and spatial size S (the patch).

    Attributes:
        inputs: float32, ``(B, C, *S)``, or ``(B, N)`` for rows of a table.
        targets: segmentation: int64 class numbers ``(B, *S)``; classification: int64 ``(B,)``;
            anomaly: the inputs, because they are to be reconstructed.
        weights: float32, 1 where a target counts and 0 where it does not (padding, unknown):
            ``(B, *S)``, or ``(B,)`` for classification.
    """

    inputs: Tensor
    targets: Tensor
    weights: Tensor

    def to(self, device: str) -> "Batch":
        """The same batch on a device (``cpu`` or ``cuda[:N]``)."""
        return Batch(self.inputs.to(device), self.targets.to(device), self.weights.to(device))
