"""Grad-CAM looks where the network looks, and is held beside networks with random weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.predict.releases import CUBE, PLANE, Bright, plan_of, predict, released
from tests.predict.test_classes import rows_of
from torch import nn

from asterion_client.predict.gradcam import RANDOM_NETWORKS, explain, random_networks
from asterion_shared.errors import UserInputError
from asterion_shared.tasks import initial_model

DATA = PLANE | {"classes": ["well", "sick"], "patch_size": [16, 16]}


class Corner(nn.Module):
    """Two maps: what is bright speaks for the second class, and a constant for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Conv2d(1, 2, 1)
        with torch.no_grad():
            self.look.weight.copy_(torch.tensor([1.0, 0.0]).view(2, 1, 1, 1))
            self.look.bias.copy_(torch.tensor([0.0, 1.0]))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        mean = self.look(inputs).mean((2, 3))[:, :1]
        return torch.cat([-mean, mean], 1)


def corner_image() -> np.ndarray:
    image = np.random.default_rng(3).uniform(0, 0.2, (1, 16, 16)).astype(np.float32)
    image[0, 2:5, 10:14] = 3
    return image


def test_the_map_is_where_the_class_comes_from() -> None:
    found = explain(Corner().eval(), [Corner()], corner_image(), 1)
    assert found is not None
    assert found.heat.shape == (16, 16)
    inside = np.zeros((16, 16), bool)
    inside[2:5, 10:14] = True
    assert found.heat[inside].min() > 0.9
    assert found.heat[~inside].max() < 0.2
    against = explain(Corner().eval(), [Corner()], corner_image(), 0)
    assert against is not None
    assert against.heat.max() == 0  # what is bright speaks against the first class alone


def test_a_map_that_random_weights_give_too_is_flagged() -> None:
    # Its map is the image itself, whatever it learnt.
    alike = explain(Corner().eval(), [Corner(), Corner()], corner_image(), 1)
    assert alike is not None
    assert (alike.likeness, alike.flagged) == (pytest.approx(1.0), True)
    plan = plan_of("classification", DATA, model={"name": "cnn", "widths": [4, 4]})
    constant = explain(Corner().eval(), [Corner()], np.zeros((1, 16, 16), np.float32), 1)
    assert constant is not None
    assert (constant.likeness, constant.flagged) == (None, True)
    learnt, *random = random_networks(plan)
    unlike = explain(learnt, random, corner_image(), 1)
    assert unlike is not None
    assert unlike.likeness is not None
    assert unlike.likeness < 1


def test_a_network_without_places_has_no_map() -> None:
    plan = plan_of("classification", DATA, model={"name": "mlp", "widths": [4]})
    assert explain(initial_model(plan).eval(), random_networks(plan), corner_image(), 1) is None


def test_the_least_certain_get_a_picture(tmp_path: Path) -> None:
    plan = plan_of("classification", DATA, model={"name": "residual", "widths": [4, 8]})
    (tmp_path / "in").mkdir()
    images = np.stack([corner_image()[0] * scale for scale in (0.1, 1.0, 10.0)])
    np.savez(tmp_path / "in/set.npz", images=images)
    model = released(tmp_path / "r", plan, initial_model(plan))
    found = predict(model, tmp_path / "in", tmp_path / "out", explain=2)
    rows = rows_of(tmp_path / "out/explanations.csv")
    least = sorted(found.results, key=lambda r: -(r.uncertainty or 0))[:2]
    assert [r["file"] for r in rows] == [r.id for r in least]
    for row in rows:
        picture = (tmp_path / "out" / row["picture"]).read_bytes()
        assert picture.startswith(b"\x89PNG")
        likeness = float(row["correlation_with_random_weights"])
        assert 0 <= likeness <= 1
        assert row["flagged"] == ("yes" if likeness >= 0.5 else "no")


def test_random_networks_are_those_of_the_plan() -> None:
    plan = plan_of("classification", DATA, model={"name": "mlp", "widths": [4]})
    weights = [next(n.parameters()) for n in random_networks(plan)]
    assert len({float(w.detach().flatten()[0]) for w in weights}) == RANDOM_NETWORKS
    again = [next(n.parameters()) for n in random_networks(plan)]
    assert all(torch.equal(one, other) for one, other in zip(weights, again, strict=True))


def test_explanations_are_for_classification(tmp_path: Path) -> None:
    model = released(tmp_path / "r", plan_of("segmentation", CUBE), Bright())
    (tmp_path / "in").mkdir()
    np.savez(tmp_path / "in/a.npz", images=np.zeros((1, 4, 4, 4), np.float32))
    with pytest.raises(UserInputError, match="--explain is for classification"):
        predict(model, tmp_path / "in", tmp_path / "out", explain=1)
