"""Per-example gradients, clipped and summed: the inner step of training with privacy.

method = choose_method(model, loss_of, batch)
gradients, norms = clipped_gradient_sum(model, loss_of, batch, clip_norm, method)
"""

from asterion_shared.clipped_gradients.losses import LossOf, example_losses
from asterion_shared.clipped_gradients.methods import ClippedSum, Method, clipped_gradient_sum
from asterion_shared.clipped_gradients.probe import choose_method
from asterion_shared.clipped_gradients.recording import NoRuleError

__all__ = [
    "ClippedSum",
    "LossOf",
    "Method",
    "NoRuleError",
    "choose_method",
    "clipped_gradient_sum",
    "example_losses",
]
