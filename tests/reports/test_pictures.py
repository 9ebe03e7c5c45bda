import io
from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from asterion_shared.cases import Case, CaseList
from asterion_shared.plan import DataContract, ModelSettings, Plan
from asterion_shared.reports import drawing
from asterion_shared.reports.pictures import choose, dice, draw_examples, windows

Array = npt.NDArray[np.float32]


def seg_plan(**contract: object) -> Plan:
    return Plan(
        name="p",
        task="segmentation",
        model=ModelSettings(name="unet"),
        data=DataContract(**contract),  # type: ignore[arg-type]
    )


def disc(shape: tuple[int, ...], centre: tuple[int, ...], radius: float) -> npt.NDArray[np.bool_]:
    grid = np.indices(shape)
    square = sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True))
    return np.asarray(square <= radius**2)


def shifted_predictions(shifts: dict[str, int], num_classes: int = 2):  # type: ignore[no-untyped-def]
    """A model that finds the truth, displaced by a number of pixels: more is worse."""

    def predict(cases: Iterable[Case]) -> Iterator[Array]:
        for case in cases:
            truth = case.native_mask if case.native_mask is not None else case.mask
            assert truth is not None
            moved = np.roll(truth, shifts.get(case.id, 0), axis=-1)
            yield np.stack([(moved == k).astype(np.float32) for k in range(num_classes)])

    return predict


def seg_case(name: str, shape: tuple[int, ...] = (32, 32)) -> Case:
    mask = disc(shape, tuple(s // 2 for s in shape), 6).astype(np.int16)
    noise = np.random.default_rng(0).normal(size=shape)
    return Case(id=name, image=(mask + 0.2 * noise).astype(np.float32)[None], mask=mask)


def size_of(png: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(png)) as image:
        image.load()
        return image.size


@given(st.integers(1, 60), st.integers(1, 12))
def test_the_choice_is_ranked_distinct_and_ends_with_the_worst(count: int, most: int) -> None:
    picked = [index for _, index in choose(count, most)]
    assert len(picked) == min(count, most)
    assert all(a < b for a, b in pairwise(picked))
    assert picked[0] == 0
    if len(picked) > 1:
        assert picked[-1] == count - 1


def test_best_middle_and_worst_come_in_order() -> None:
    names = [f"{i:012x}" for i in range(9)]
    cases = CaseList.of(seg_case(name) for name in reversed(names))
    predict = shifted_predictions({name: i for i, name in enumerate(names)})
    pictures = draw_examples(seg_plan(), predict, cases, max_pictures=3)
    assert [p.title for p in pictures] == ["Best of 9", "Middle of 9", "Worst of 9"]
    assert pictures[0].caption == f"Dice 1.00. Case {names[0]}."
    assert names[8] in pictures[2].caption
    assert all(min(size_of(p.png)) > 150 for p in pictures)


def test_the_same_cases_give_the_same_bytes() -> None:
    cases = CaseList.of([seg_case("a"), seg_case("b")])
    first, second = (draw_examples(seg_plan(), shifted_predictions({}), cases) for _ in range(2))
    assert first == second


def test_a_large_field_is_shown_in_windows() -> None:
    shape = (200, 300)
    mask = np.zeros(shape, np.int16)
    for centre in ((30, 30), (170, 280), (100, 150)):
        mask[disc(shape, centre, 8)] = 1
    case = Case(id="f", image=mask.astype(np.float32)[None], mask=mask)
    plan = seg_plan(normalisation="asinh", pixel_scale_arcsec=0.1)
    pictures = draw_examples(plan, shifted_predictions({}), CaseList.of([case]), max_pictures=2)
    assert pictures
    assert all("rows" in p.caption and "columns" in p.caption for p in pictures)


@given(st.integers(193, 700), st.integers(1, 700))
def test_windows_cover_every_pixel(height: int, width: int) -> None:
    seen = np.zeros((height, width), bool)
    for window in windows((height, width)):
        seen[window] = True
        assert seen[window].shape == (min(height, 128), min(width, 128))
    assert seen.all()


def test_a_volume_shows_the_slice_with_the_largest_mask() -> None:
    shape = (20, 24, 16)
    mask = disc(shape, (10, 12, 5), 5).astype(np.int16)
    case = Case(id="v", image=mask.astype(np.float32)[None], mask=mask, native_spacing=(1, 1, 3))
    plan = seg_plan(dimensions=3, patch_size=(8, 8, 8), classes=("bg", "a", "b"))
    (picture,) = draw_examples(plan, shifted_predictions({}, 3), CaseList.of([case]))
    assert picture.title == "The only example"
    assert "slice 6 of 16" in picture.caption
    assert "(a 1.00, b 1.00)" in picture.caption


def test_a_thick_axis_is_the_one_that_is_cut() -> None:
    mask = np.zeros((4, 20, 20), np.int16)
    mask[2, 5:9, 5:9] = 1
    assert drawing.fullest_slice(mask, (5.0, 1.0, 1.0))[1] == "slice 3 of 4"
    assert drawing.fullest_slice(mask, (1.0, 1.0, 1.0))[1].endswith("of 20")


def test_the_native_grid_is_shown_when_it_differs() -> None:
    native = disc((40, 60), (20, 30), 9).astype(np.int16)
    image = np.zeros((1, 20, 30), np.float32)
    case = Case(id="n", image=image, native_mask=native, native_shape=(40, 60),
                native_spacing=(1.0, 1.0))  # fmt: skip
    (picture,) = draw_examples(seg_plan(), shifted_predictions({}), CaseList.of([case]))
    assert picture.caption.startswith("Dice 1.00")


def test_ignored_pixels_do_not_count() -> None:
    mask = np.zeros((16, 16), np.int16)
    mask[:, :4], mask[:, 12:] = 1, -1

    def predict(cases: Iterable[Case]) -> Iterator[Array]:
        for _ in cases:
            found = np.zeros((16, 16), np.float32)
            found[:, :4] = found[:, 12:] = 1
            yield np.stack([1 - found, found])

    case = Case(id="i", image=np.zeros((1, 16, 16), np.float32), mask=mask)
    (picture,) = draw_examples(seg_plan(), predict, CaseList.of([case]))
    assert picture.caption.startswith("Dice 1.00")


def test_a_prediction_of_another_shape_is_refused() -> None:
    def predict(cases: Iterable[Case]) -> Iterator[Array]:
        for _ in cases:
            yield np.zeros((2, 5, 5), np.float32)

    with pytest.raises(ValueError, match=r"\(5, 5\) and its mask \(32, 32\)"):
        draw_examples(seg_plan(), predict, CaseList.of([seg_case("a")]))


def test_colour_images_and_named_channels() -> None:
    mask = disc((32, 32), (16, 16), 5).astype(np.int16)
    case = Case(id="c", image=np.random.default_rng(1).random((3, 32, 32), np.float32), mask=mask)
    predict = shifted_predictions({})
    colour = seg_plan(channels=("red", "green", "blue"))
    (picture,) = draw_examples(colour, predict, CaseList.of([case]))
    assert "channel" not in picture.caption
    (picture,) = draw_examples(seg_plan(channels=("g", "r", "i")), predict, CaseList.of([case]))
    assert "Shown is channel g." in picture.caption


def class_plan(task: str, **contract: object) -> Plan:
    names = {"classification": "residual", "anomaly": "conv_autoencoder"}
    return Plan(
        name="p",
        task=task,  # type: ignore[arg-type]
        model=ModelSettings(name=names[task]),
        data=DataContract(classes=("normal", "ill"), **contract),  # type: ignore[arg-type]
    )


def test_classification_says_truth_prediction_and_probability() -> None:
    shares = {"a": 0.9, "b": 0.4, "u": 0.5}
    zeros = np.zeros((1, 8, 8), np.float32)
    cases = [Case(id="a", image=zeros, label=1), Case(id="b", image=zeros, label=1),
             Case(id="u", image=zeros)]  # fmt: skip

    def predict(given_cases: Iterable[Case]) -> Iterator[Array]:
        for case in given_cases:
            yield np.array([1 - shares[case.id], shares[case.id]], np.float32)

    best, worst = draw_examples(class_plan("classification"), predict, CaseList.of(cases))
    assert best.caption == "Truth: ill; predicted: ill with probability 0.90 (right). Case a."
    assert worst.caption == "Truth: ill; predicted: normal with probability 0.60 (wrong). Case b."


@pytest.mark.parametrize("dimensions", [2, 3])
def test_anomaly_ranks_each_case_against_the_other_class(dimensions: int) -> None:
    shape = (8,) * dimensions
    errors = {"n1": 1.0, "n2": 2.0, "odd": 1.5}
    mask = np.zeros(shape, np.int16)
    mask[2:4, 2:4] = 1
    cases = [
        Case(id=name, image=np.zeros((1, *shape), np.float32), label=int(name == "odd"),
             mask=mask if name == "odd" else None)
        for name in errors
    ]  # fmt: skip

    def predict(given_cases: Iterable[Case]) -> Iterator[Array]:
        for case in given_cases:
            yield np.full(shape, errors[case.id], np.float32)

    plan = class_plan("anomaly", dimensions=dimensions, patch_size=shape)
    pictures = draw_examples(plan, predict, CaseList.of(cases))
    captions = [p.caption for p in pictures]
    assert "1, below that of 100% of the cases that are ill" in captions[0]
    assert "1.5, above that of 50% of the cases that are normal" in captions[1]
    assert "2, below that of 0% of the cases that are ill" in captions[2]


def test_tables_and_empty_lists_have_no_pictures() -> None:
    table = Plan(
        name="t",
        task="classification",
        model=ModelSettings(name="logistic"),
        data=DataContract(kind="table", features=("age",), classes=("no", "yes")),
    )
    row = Case(id="r", image=np.zeros(1, np.float32), label=0)
    assert draw_examples(table, shifted_predictions({}), CaseList.of([row])) == []
    assert draw_examples(seg_plan(), shifted_predictions({}), CaseList.of([])) == []
    with pytest.raises(ValueError, match="max_pictures is 0"):
        draw_examples(seg_plan(), shifted_predictions({}), CaseList.of([]), max_pictures=0)


def test_dice_by_hand() -> None:
    a, b = np.array([True, True, False]), np.array([True, False, False])
    assert dice(a, b) == pytest.approx(2 / 3)
    assert dice(~a & a, ~a & a) == 1
    assert dice(~a & a, a) == 0


@pytest.mark.parametrize("asinh", [False, True])
def test_the_stretch_keeps_order_and_survives_flat_images(asinh: bool) -> None:
    ramp = np.linspace(-5, 5000, 400, dtype=np.float32).reshape(20, 20)
    shown = drawing.stretch(ramp, asinh=asinh)
    assert (shown.min(), shown.max()) == (0, 1)
    assert (np.diff(shown.ravel()) >= 0).all()
    assert (drawing.stretch(np.full((4, 4), 7, np.float32), asinh=asinh) == 0).all()


def test_an_anomaly_without_the_other_class_is_not_ranked_against_it() -> None:
    plan = class_plan("anomaly", dimensions=2, patch_size=(16, 16))
    draws = np.random.default_rng(3)
    cases = CaseList.of(
        Case(id=f"{i:012x}", image=draws.normal(size=(1, 16, 16)).astype(np.float32), label=0)
        for i in range(3)
    )
    pictures = draw_examples(plan, lambda them: (c.image[0] ** 2 for c in them), cases)
    assert len(pictures) == 3
    assert all("of the cases that are" not in picture.caption for picture in pictures)
