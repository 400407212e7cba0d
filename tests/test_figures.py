"""What is drawn is what the rows say, read back from the axes."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt

from reptrans.bench import effect
from reptrans.errors import BadData, ShapeMismatch, UnknownName
from reptrans.figures import (
    COLOURS,
    WIDEST,
    dissimilarities,
    forest,
    heatmap,
    image_row,
    layer_curves,
    learning_curves,
    scatter,
    trade,
    weights,
)
from reptrans.notebook import style

matplotlib.use("Agg")

ROWS = pd.DataFrame(
    [
        ("conv2", "direct", 0, 0.8), ("conv2", "direct", 1, 0.6), ("conv2", "task", 0, 0.5), ("conv2", "task", 1, 0.7),
        ("conv1", "direct", 0, 0.9), ("conv1", "direct", 1, 0.9), ("conv1", "task", 0, 0.2), ("conv1", "task", 1, 0.6),
    ],
    columns=["layer", "matching", "seed", "accuracy"],
)  # fmt: skip


@pytest.fixture(autouse=True)
def _closed():
    """Each test begins with the settings, and leaves the open figures, that it found."""
    with matplotlib.rc_context():
        yield
    plt.close("all")


def line(container):
    return container.lines[0].get_ydata(orig=False)


def reach(container):
    """The lower and upper ends of the error bars."""
    return np.array([segment[:, 1] for segment in container.lines[2][0].get_segments()])


def test_layer_curves_are_means_in_the_order_of_the_rows():
    ax = layer_curves(ROWS, reference={"front network": 0.95})
    direct, task = ax.containers
    np.testing.assert_allclose(line(direct), [0.7, 0.9])
    np.testing.assert_allclose(line(task), [0.6, 0.4])
    np.testing.assert_allclose(reach(direct), [[0.6, 0.8], [0.9, 0.9]])
    np.testing.assert_allclose(reach(task), [[0.5, 0.7], [0.2, 0.6]])
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["conv2", "conv1"]
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert sorted(legend) == ["direct", "front network (0.95)", "task"]
    assert ax.get_ylabel() == "accuracy (fraction)\nmean and range, 2 seeds"
    assert [list(found.get_ydata()) for found in ax.lines if found.get_linestyle() == "--"] == [[0.95, 0.95]]


def test_of_three_seeds_the_bars_are_intervals_of_the_mean():
    rows = pd.DataFrame({"layer": "a", "seed": [0, 1, 2], "relative_accuracy": [0.4, 0.5, 0.9]})
    rows = pd.concat([rows, rows.assign(layer="b", relative_accuracy=0.5)])
    ax = layer_curves(rows, y="relative_accuracy", hue=None)
    found = effect([0.4, 0.5, 0.9])
    np.testing.assert_allclose(reach(ax.containers[0]), [[found.low, found.high], [0.5, 0.5]])
    assert ax.get_ylabel() == "share of the end network's accuracy\nmean and 95 % interval, 3 seeds"


def test_the_highlighted_line_is_the_thick_one():
    direct, task = layer_curves(ROWS, highlight="task").containers
    assert task.lines[0].get_linewidth() > direct.lines[0].get_linewidth()


def test_no_figure_is_wider_than_the_page():
    many = pd.DataFrame(np.zeros((20, 30)), columns=[f"layer{i}" for i in range(30)])
    rows = pd.DataFrame({"layer": [f"layer{i}" for i in range(40)], "accuracy": 0.5})
    for ax in (heatmap(many, "CKA"), layer_curves(rows, hue=None), image_row(torch.zeros(10, 1, 8, 8))):
        assert ax.figure.get_figwidth() <= WIDEST


@pytest.mark.parametrize("colour", COLOURS)
def test_each_colour_is_readable_on_white(colour):
    parts = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in matplotlib.colors.to_rgb(colour)]
    assert 1.05 / (np.dot(parts, [0.2126, 0.7152, 0.0722]) + 0.05) >= 4.5


def test_a_seed_counts_once_however_many_rows_it_has():
    rows = pd.DataFrame({"layer": "a", "seed": [0, 0, 0, 1], "accuracy": [1.0, 1.0, 1.0, 0.0]})
    rows = pd.concat([rows, rows.assign(layer="b")])
    np.testing.assert_allclose(line(layer_curves(rows, hue=None).containers[0]), [0.5, 0.5])


def test_a_layer_that_one_kind_lacks_stays_empty():
    rows = ROWS[(ROWS.matching == "direct") | (ROWS.layer == "conv1")]
    np.testing.assert_allclose(line(layer_curves(rows).containers[1]), [np.nan, 0.4])


def test_a_single_layer_puts_the_kinds_side_by_side():
    ax = layer_curves(ROWS[ROWS.layer == "conv2"])
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["direct", "task"]
    points = [(float(c.lines[0].get_xdata()[0]), float(line(c)[0])) for c in ax.containers]
    np.testing.assert_allclose(points, [(0, 0.7), (1, 0.6)])
    assert ax.get_title() == "layer conv2"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("count", [1, 3, 18, 60])
def test_names_of_layers_do_not_overlap(count):
    style()
    rows = pd.DataFrame({"layer": [f"layer{i}.0.bn1" for i in range(count)], "matching": "m", "accuracy": 0.5})
    ax = layer_curves(rows)
    ax.figure.canvas.draw()
    ticks = ax.get_xticklabels()
    if ticks[0].get_rotation() == 0:
        boxes = [tick.get_window_extent() for tick in ticks]
        assert all(left.x1 < right.x0 for left, right in zip(boxes, boxes[1:], strict=False))
    else:  # turned names need their own height as room
        first, second = ax.get_xticks()[:2]
        room = (ax.transData.transform([(second, 0)]) - ax.transData.transform([(first, 0)]))[0, 0]
        assert room >= ticks[0].get_fontsize() * ax.figure.dpi / 72


def test_learning_curves():
    rows = pd.DataFrame({"epoch": [1, 2, 1, 2], "seed": [0, 0, 1, 1], "accuracy": [0.2, 0.4, 0.4, 0.8],
                         "test_accuracy": [np.nan, 0.3, np.nan, 0.5]})  # fmt: skip
    ax = learning_curves(rows)
    train, test = ax.lines
    np.testing.assert_allclose(train.get_xydata(), [(1, 0.3), (2, 0.6)])
    np.testing.assert_allclose(test.get_xydata(), [(2, 0.4)])
    assert ax.get_ylabel() == "accuracy (fraction)\nmean and range, 2 seeds"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["accuracy", "test accuracy"]


def test_learning_curves_with_a_hue():
    rows = pd.DataFrame({"epoch": [1, 2, 1, 2], "method": list("aabb"), "accuracy": [0.1, 0.2, 0.3, 0.4]})
    ax = learning_curves(rows, y="accuracy", hue="method")
    drawn = {found.get_label(): list(found.get_ydata()) for found in ax.lines}
    assert drawn == {"a": [0.1, 0.2], "b": [0.3, 0.4]}


def test_dissimilarities_are_sorted_by_group():
    distance = np.abs(np.subtract.outer([0, 5, 1, 6], [0, 5, 1, 6]))
    ax = dissimilarities(torch.tensor(distance), ["b", "a", "b", "a"])
    assert ax.images[0].get_array().tolist() == np.abs(np.subtract.outer([5, 6, 0, 1], [5, 6, 0, 1])).tolist()
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b"]
    assert list(ax.get_xticks()) == [0.5, 2.5]
    for matrix, groups in ((distance[:3], None), (distance, ["a"])):
        with pytest.raises(ShapeMismatch, match="distances between n examples"):
            dissimilarities(matrix, groups)


def test_heatmap_shows_the_matrix():
    matrix = pd.DataFrame([[0.0, 0.25], [0.5, 1.0]], index=["a", "b"], columns=["c", "d"])
    ax = heatmap(matrix, "linear CKA", limits=(0, 1))
    np.testing.assert_array_equal(ax.collections[0].get_array(), matrix)
    assert ax.collections[0].get_clim() == (0, 1)
    assert [text.get_text() for text in ax.texts] == ["0.00", "0.25", "0.50", "1.00"]
    assert ax.get_aspect() == 1
    pale = heatmap(matrix, "linear CKA", pale=matrix < matrix.max(axis=None))
    assert len(pale.patches) == (matrix < matrix.max(axis=None)).sum(axis=None)
    assert not heatmap(pd.DataFrame(np.eye(13)), "CKA").texts


def test_weights_are_centred_at_zero():
    ax = weights(torch.tensor([[1.0, -3.0], [0.0, 2.0]])[:, :, None, None])
    picture = ax.collections[0]
    assert picture.get_clim() == (-3, 3)
    np.testing.assert_array_equal(picture.get_array(), [[1, -3], [0, 2]])
    assert weights(np.zeros((2, 2))).collections[0].get_clim() == (-1, 1)


@pytest.mark.parametrize(
    ("matrix", "columns"),
    [([[1.0, -3.0, 0.0], [2.0, 0.0, 1.0]], [1, 0, 2]), ([[0.0, 1.0], [0.5, 0.0], [0.0, -4.0]], [0, 1])],
)
def test_weights_with_partners_on_the_diagonal(matrix, columns):
    ax = weights(np.array(matrix), paired=True)
    np.testing.assert_array_equal(ax.collections[0].get_array(), np.array(matrix)[:, columns])
    assert [int(tick.get_text()) for tick in ax.get_xticklabels()] == columns


def test_what_cannot_be_drawn():
    with pytest.raises(UnknownName) as caught:
        layer_curves(ROWS, y="acuracy")
    assert str(caught.value) == (
        "the rows have no column 'acuracy'. Did you mean 'accuracy'? Possible: layer, matching, seed, accuracy"
    )
    with pytest.raises(BadData, match="^there are no rows to draw.$"):
        layer_curves(ROWS[:0])
    with pytest.raises(BadData, match="^a heat map needs .* and the matrix is 0 x 0.$"):
        heatmap(pd.DataFrame(), "CKA")
    with pytest.raises(ShapeMismatch) as shape:
        weights(torch.zeros(4))
    assert str(shape.value) == "weights have the shape (out, in) or (out, in, 1, 1), and these have (4,)."


def test_a_forest_shows_intervals_what_is_published_and_verdicts():
    table = pd.DataFrame({
        "method": ["kd", "at"], "over": ["plain", "plain"], "gain": [0.02, -0.01], "low": [0.01, -0.03],
        "high": [0.03, 0.01], "n": [8, 8], "published": [0.016, np.nan], "verdict": ["held", "not decided"],
    })  # fmt: skip
    ax = forest(table, "gain")
    lines = [line for line in ax.lines if len(line.get_xdata()) == 2]
    assert [list(line.get_xdata()) for line in lines[:2]] == [[0.01, 0.03], [-0.03, 0.01]]
    dots = [line.get_xdata()[0] for line in ax.lines if line.get_marker() == "o"]
    assert dots == [0.02, -0.01] and [label.get_text() for label in ax.get_yticklabels()] == ["kd", "at"]
    assert next(line for line in ax.lines if line.get_marker() == "D").get_xdata()[0] == 0.016
    assert lines[0].get_color() != lines[1].get_color() and "8 seeds" in ax.get_xlabel()
    table["over"] = ["plain", "kd"]
    assert [label.get_text() for label in forest(table, "gain").get_yticklabels()] == ["kd − plain", "at − kd"]


def test_a_trade_has_two_intervals_for_each_row():
    names = ["x", "x_low", "x_high", "y", "y_low", "y_high"]
    table = pd.DataFrame([dict(zip(names, (1, 0, 2, -1, -2, 0), strict=True)) | {"name": "a"}])
    ax = trade(table, "x", "y", "name", ("across", "up"))
    drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in ax.lines[:3]]
    assert drawn == [([0, 2], [-1, -1]), ([1, 1], [-2, 0]), ([1], [-1])]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("across", "up")


def test_a_scatter_has_a_mark_for_each_kind():
    table = pd.DataFrame({"x": [1, 2, 3], "y": [4, 5, 6], "kind": ["b", "a", "b"]})
    ax = scatter(table, "x", "y", "kind", ("across", "up"))
    assert [(line.get_label(), list(line.get_xdata()), list(line.get_ydata())) for line in ax.lines] == [
        ("b", [1, 3], [4, 6]), ("a", [2], [5])]  # fmt: skip
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("across", "up")
    with pytest.raises(UnknownName, match="the rows have no column 'kin'. Did you mean 'kind'"):
        scatter(table, "x", "y", "kin", ("across", "up"))
