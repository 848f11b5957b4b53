"""The table of recipes, and `flatten recipes`."""

from pathlib import Path

import pytest

from flatten_transformer import cli
from flatten_transformer.training.recipe_table import matching_recipes, recipe_table
from flatten_transformer.training.recipes import read_recipe, recipe_folder, recipe_names


def test_every_recipe_is_in_the_table_which_fits_100_columns() -> None:
    lines = recipe_table().splitlines()
    assert sorted(line.split()[0] for line in lines if line.startswith("  ")) == recipe_names()
    assert max(map(len, lines)) <= 100
    assert not [line for line in lines if line != line.rstrip()]


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_says_its_task_model_and_hardware(name: str) -> None:
    recipe = read_recipe(name)
    assert recipe.task in ("classify", "detect", "segment", "distill")
    assert "flatten_" in recipe.model or recipe.task == "distill"
    assert 0 < len(recipe.hardware) <= 20
    assert recipe.time is None or recipe.time[-1] not in ",;("


def test_data_sets_on_which_a_recipe_has_been_run_come_first() -> None:
    ran = [recipe.time is not None for recipe in matching_recipes()]
    assert ran == sorted(ran, reverse=True)
    assert 0 < sum(ran) < len(ran)


@pytest.mark.parametrize(
    ("words", "fitting"),
    [
        (["deit", "digits"], {"digits/flatten_deit", "digits/softmax_deit"}),
        (["SCENES"], {"scenes/mask_rcnn_flatten_pvt_v2", "scenes/semantic_fpn_flatten_pvt_v2"}),
        (["segment", "upernet"], {"ade20k/upernet_flatten_swin_small_160k", "ade20k/upernet_flatten_swin_tiny_160k"}),
        (["fashion", "stud"], {"fashion_mnist/study"}),
    ],
)
def test_words_choose_recipes_by_name_and_task(words: list[str], fitting: set[str]) -> None:
    assert {recipe.name for recipe in matching_recipes(words)} == fitting


@pytest.mark.parametrize("words", [["iny"], ["digits", "swin"]])
def test_a_word_that_no_recipe_begins_a_word_with_fits_none(words: list[str]) -> None:
    with pytest.raises(ValueError, match=f"no recipe fits '{' '.join(words)}': "):
        matching_recipes(words)


@pytest.mark.parametrize("given", ["digits/flatten_deit", "recipes/digits/flatten_deit.yaml", "digits flatten"])
def test_a_single_recipe_is_shown_as_the_file_it_is(given: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recipes", *given.split()]) == 0
    assert capfd.readouterr().out == (recipe_folder() / "digits" / "flatten_deit.yaml").read_text("utf-8")


def test_a_name_that_others_begin_with_means_its_recipe_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flatten_transformer.training.recipes.recipe_folder", lambda: tmp_path)
    for name in ("vit", "vit_large"):
        (tmp_path / f"{name}.yaml").write_text("model: {}")
    assert [recipe.name for recipe in matching_recipes(["vit"])] == ["vit"]
    assert [recipe.name for recipe in matching_recipes(["vi"])] == ["vit", "vit_large"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["digits/flaten_deit"], "no recipe fits 'digits/flaten_deit': did you mean digits/flatten_deit"),
        (["zebra"], "no recipe fits 'zebra': choose one of ade20k/…"),
        (["digits", "--all"], "unrecognized arguments: --all"),
    ],
)
def test_what_is_no_recipe_is_one_line(argv: list[str], said: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recipes", *argv]) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"flatten: error: {said}")


def test_its_help_says_that_words_may_be_left_out(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["recipes", "--help"])
    out = capfd.readouterr().out
    assert "[WORDS ...]" in out
    assert "required" not in out
