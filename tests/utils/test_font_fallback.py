from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw

from flatten_transformer.data.preprocessing import read_image
from flatten_transformer.tasks.classification.plots import draw_confusion, draw_images
from flatten_transformer.tasks.overlays import draw_objects
from flatten_transformer.tasks.per_class import PerClass
from flatten_transformer.tasks.segmentation.plots import draw_overlay
from flatten_transformer.utils import font_fallback
from flatten_transformer.utils.font_fallback import FallbackFonts, shortened

NAMES = [
    "$x^2$",
    "cost $5",
    r"a\$b",
    "$",
    "_{^",
    "猫咪",
    "قطة",
    "😀",
    "a\nb\x1b[2J",
    "n" * 500,
    "Café Ω",
    "\udce9",
    "",
    " ",
    "\u200d\ufe0f",
]
ONE_HIGH, ABSENT = "\U0001d538", "\U000323af"  # a letter that only fonts of mathematics have, and one that no font has


def test_any_name_can_be_drawn(tmp_path: Path) -> None:  # pytest makes an error of a warning
    for names in (NAMES, [NAMES[9], "dog"]):
        draw_confusion(torch.eye(len(names)).long(), names, tmp_path / "confusion.png")
        assert max(read_image(tmp_path / "confusion.png").size) < 2000
    titles = [f"{name},\nnot {name}" for name in NAMES[:10:3]]
    draw_images([Image.new("RGB", (8, 8))] * len(titles), titles, "Mistakes", tmp_path / "mistakes.png")
    image, there = Image.new("RGB", (90, 60)), torch.tensor([[10.0, 20, 40, 40]])
    for name in NAMES:
        assert draw_objects(image, there, [0], [f"{name} 90%"]).size == (90, 60)
        assert draw_overlay(image, torch.zeros(60, 90, dtype=torch.long), [name, "dog"]).height == 240
    shares = {"iou": [0.5] * len(NAMES)}
    PerClass("val", NAMES, shares, [1] * len(NAMES), "pixels").draw(tmp_path / "per_class.png")


def test_names_are_set_as_they_are_and_not_as_mathematics() -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    letters = FallbackFonts(["$x^2$", "x^2", r"a\$b"])
    with letters.styled():
        figure = Figure()
        renderer: Any = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
        for name in ("$x^2$", "cost $5", r"a\$b", r"a\\$b$"):
            text, plain = figure.text(0, 0.5, letters.plot(name)), figure.text(0, 0.2, name, parse_math=False)
            boxes = [part.get_window_extent(renderer) for part in (text, plain)]
            assert boxes[0].width == boxes[1].width, name


def test_a_letter_comes_from_the_font_that_has_it() -> None:
    letters = FallbackFonts([f"a{ONE_HIGH}", ABSENT])
    assert letters.legible(f"a{ONE_HIGH}") == f"a{ONE_HIGH}"
    canvas = ImageDraw.Draw(Image.new("L", (90, 40), "white"))
    images = []
    for text in (ONE_HIGH, "\uffff"):
        image = Image.new("L", (40, 40), "white")
        letters.draw(ImageDraw.Draw(image), (5, 30), text, 20, "black")
        images.append(image.tobytes())
    assert images[0] != images[1]  # not the box of a missing letter
    assert letters.box("ab", 20) == pytest.approx(canvas.textbbox((0, 0), "ab", font_size=20, anchor="ls"), abs=0.1)
    left, _, right, _ = letters.box(f"a{ONE_HIGH}b", 20)
    assert right - left > letters.box("ab", 20)[2]


def test_a_letter_that_no_font_has_is_written_as_its_code() -> None:
    assert FallbackFonts([f"a{ABSENT}"]).legible(f"a{ABSENT}") == r"a\U000323af"
    assert FallbackFonts(["\u200da"]).legible("\u200da") in ("a", "\u200da")  # a joiner is nothing by itself


def test_without_any_font_all_but_ascii_is_written_as_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(font_fallback, "_installed", lambda: ("/dev/null", "missing.ttf"))
    font_fallback._find_fonts.cache_clear()
    assert FallbackFonts(["Café"]).legible("Café") == r"Caf\xe9"
    font_fallback._find_fonts.cache_clear()


def test_long_names_keep_both_ends() -> None:
    assert shortened("a" * 300 + "b" * 300, 9) == "aaaa…bbbb"
    assert shortened("a" * 9, 9) == "a" * 9
    assert all(len(shortened("\x1b" * n, 20)) <= 20 for n in range(0, 200, 7))
    assert shortened("猫" * 1_000_000, 4) == "猫猫…猫"
