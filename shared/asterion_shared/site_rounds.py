"""A round as a site itself saw it: the material of its own report."""

from pydantic import Field

from asterion_shared.result import Count, Measure, Metrics, Seconds
from asterion_shared.settings_files import Settings


class SiteRound(Settings):
    """What a site knows of one round."""

    round: Count
    """The round whose model was measured and, above 0, in which the site trained."""

    metrics: Metrics = Field(default_factory=dict)
    """Metrics at this site of the model after that round; empty when it was not measured."""

    num_examples: Count = 0
    num_test: Count = 0
    num_steps: Count = 0
    train_loss: Measure = None
    seconds: Seconds = 0.0
