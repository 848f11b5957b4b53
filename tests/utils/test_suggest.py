"""What is suggested for a name that is not known."""

import pytest

from flatten_transformer.utils.suggest import close_names, did_you_mean

MODELS = ["deit_tiny", "gcvit_tiny", "levit", "vit_tiny_patch16_384", "vit_tiny_patch16_224", "vit_tiny_r_s16", "volo"]
OPTIONS = [
    "-h",
    "--config",
    "--ckpt_path",
    "--data.batch_size",
    "--model.optim.lr",
    "--trainer.max_epochs",
    "--trainer.accelerator",
]


@pytest.mark.parametrize(
    ("given", "names", "close"),
    [
        ("vit_tiny", MODELS, ["vit_tiny_r_s16", "vit_tiny_patch16_384", "vit_tiny_patch16_224"]),  # what begins with it
        ("VIT_TINY_P", MODELS, ["vit_tiny_patch16_384", "vit_tiny_patch16_224"]),
        ("tiny", ["atiny", "deit_tiny", "tiny_x"], ["tiny_x", "deit_tiny", "atiny"]),  # begins, is a word, is inside
        ("r_s16", MODELS, ["vit_tiny_r_s16"]),
        ("volo_d", MODELS, ["volo"]),  # resembles
        ("vi", ["gcvit_tiny", "levit"], []),  # too short to be looked for inside
        ("", MODELS, []),
        ("--batch_size", OPTIONS, ["--data.batch_size"]),
        ("--lr", OPTIONS, ["--model.optim.lr"]),
        ("--trainer.lr", OPTIONS, ["--model.optim.lr"]),  # the last part is the same
        ("--lrr", OPTIONS, ["--model.optim.lr"]),  # the last part resembles
        ("--trainer.acelerator", OPTIONS, ["--trainer.accelerator", "--trainer.max_epochs"]),
        ("--confg", OPTIONS, ["--config"]),
    ],
)
def test_what_begins_with_a_name_comes_before_what_holds_or_resembles_it(given: str, names: list[str], close: list[str]) -> None:
    assert close_names(given, names) == close


def test_where_nothing_is_like_it_few_names_are_listed_and_many_are_counted() -> None:
    assert did_you_mean("zebra", MODELS) == f"choose one of {', '.join(MODELS)}"
    assert did_you_mean("zebra", MODELS * 3) == "none of 21 names is like it"
    assert did_you_mean("zebra", MODELS * 3, ["vit", "deit"]) == "choose one of vit, deit"
