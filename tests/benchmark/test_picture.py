"""What stands in the pictures of reports."""

import numpy as np
from matplotlib.figure import Figure

from flatten_transformer.benchmark.contenders import names
from flatten_transformer.benchmark.model import NAMESAKES
from flatten_transformer.benchmark.picture import _STYLES, _bars, _sweep, model_title
from flatten_transformer.benchmark.report import Point, Report
from flatten_transformer.benchmark.timing import Spread


def timed(contender: str, tokens: int, median_us: float | None, ratio: float = 1.0) -> Point:
    shape = {"batch": 1, "height": 1, "width": tokens, "channels": 32, "heads": 1, "tokens": tokens}
    ratios = {} if median_us is None else {"released": Spread(ratio, ratio, ratio)}
    reason = "left out" if median_us is None else None
    times = (median_us, median_us, median_us, 3, None, 0.1 * tokens, None)
    return Point("attention", contender, shape, "float32", "forward", *times, ratios, reason)


def written(figure: Figure) -> list[str]:
    return [text.get_text() for axis in figure.axes for text in axis.texts]


def test_a_sweep_ends_where_nobody_was_timed_any_more_though_the_floor_is_known() -> None:
    points = [timed("ours", 10, 2.0), timed("ours", 100, 20.0), timed("ours", 10_000, None)]
    axis = _sweep(Report({}, points)).axes[0]
    for line in axis.lines:
        assert np.max(np.asarray(line.get_xdata())) == 100, line.get_label()
    assert [tick for tick in axis.get_xticks() if tick > 100] == []


def test_a_bar_that_is_next_to_nothing_is_not_said_to_be_zero() -> None:
    points = [timed("ours", 10, 2.0, ratio=0.5), timed("released", 10, 4.0), timed("softmax-math", 10, 900.0, ratio=225.0)]
    assert written(_bars(Report({}, points))) == ["2.00", "0.004"]


def test_bars_of_one_race_differ_without_their_dashes() -> None:
    looks: dict[tuple[str, bool], list[str]] = {}
    for name in names():
        looks.setdefault((_STYLES[name].colour, name.endswith("compiled")), []).append(name)
    assert [alike for alike in looks.values() if len(alike) > 1] == [["ours-cpp", "ours-triton"]]  # of a CPU, of a GPU


def test_every_model_has_the_name_that_its_paper_gives_it() -> None:
    titles = {name: model_title(name) for name in NAMESAKES}
    assert all(title.startswith("FLatten-") for title in titles.values())
    assert len(set(titles.values())) == len({name.replace("_384", "_224") for name in titles})
