"""The numbers of each class as a table, a file and a picture."""

import csv
import io
import math
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console

from flatten_transformer.tasks.per_class import PerClass

SHARES = {"accuracy": [0.5, 0.25, math.nan], "f1": [0.4, 0.2, math.nan]}
THREE = PerClass("val", ["cat", "=dog", "cow"], SHARES, [2, 4, 0], "images")


def many(count: int) -> PerClass:
    return PerClass("test", [f"c{n}" for n in range(count)], {"iou": [n / count for n in range(count)]}, [1] * count, "pixels")


def printed(numbers: PerClass, rest: str = "elsewhere") -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(numbers.table(rest))
    return console.file.getvalue()  # type: ignore[attr-defined]  # a StringIO


def test_a_class_that_nothing_is_known_of_has_a_dash_and_no_part_in_the_mean() -> None:
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed(THREE).splitlines() if "│" in line]
    assert rows == [
        ["cat", "50.0", "40.0", "2"],
        ["=dog", "25.0", "20.0", "4"],
        ["cow", "–", "–", "0"],
        ["mean", "37.5", "30.0", "6"],
    ]


@pytest.mark.parametrize(("count", "rows"), [(20, 20), (21, 20)])
def test_of_many_classes_the_table_shows_the_worst_and_the_best_and_says_how_many_more(count: int, rows: int) -> None:
    text = printed(many(count), "in per_class.csv")
    assert sum(line.startswith("│ c") for line in text.splitlines()) == rows
    assert ("1 more in per_class.csv" in text) == (count == 21)
    assert ("│ c10 " in text) == (count == 20)  # the middle


def test_the_file_reads_back_as_the_numbers(tmp_path: Path) -> None:
    THREE.write_csv(tmp_path / "per_class.csv")
    with (tmp_path / "per_class.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == ["cat", "'=dog", "cow"]  # which no spreadsheet runs
    assert [float(row["accuracy"] or "nan") for row in rows] == pytest.approx([0.5, 0.25, math.nan], nan_ok=True)
    assert [row["f1"] for row in rows] == ["0.400000", "0.200000", ""]
    assert [row["support"] for row in rows] == ["2", "4", "0"]


def test_the_picture_sorts_the_classes_and_puts_its_legend_outside() -> None:
    figure = THREE.figure()
    (axis,) = figure.axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["=dog (4)", "cat (2)", "cow (0)"]  # upwards
    assert [bar.get_width() for bar in cast("Any", axis.containers[0])] == [25, 50, 0]
    assert "–" in [text.get_text() for text in axis.texts]
    assert axis.get_legend() is None
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert legend.get_window_extent().y1 < axis.get_window_extent().y0


def test_the_picture_of_many_classes_holds_the_worst_and_the_best() -> None:
    (axis,) = many(100).figure().axes
    assert [label.get_text() for label in axis.get_yticklabels()] == [f"c{n} (1)" for n in (*range(20), *range(80, 100))]
    assert axis.get_title() == "each class, test images: the 20 worst and best of 100"
