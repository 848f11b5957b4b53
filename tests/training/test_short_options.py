"""What people type: short names of options, other libraries' names, abbreviations."""

import pytest
import yaml  # type: ignore[import-untyped]  # ships no annotations

from flatten_transformer.tasks.registry import TASKS
from flatten_transformer.training.arguments import prepare
from flatten_transformer.training.cli import Parser, TrainingCLI
from flatten_transformer.training.short_options import expand, short_options, words

TINY = "{img_size: 32, patch_size: 8, embed_dim: 16, depth: 1, num_heads: 2}"
DRY = ["--trainer.fast_dev_run", "true", "--trainer.accelerator", "cpu"]


def test_short_options_set_what_their_long_ones_set() -> None:
    short = "--lr 2e-3 --weight-decay 0.1 --epochs 5 --batch_size=16 --img_size 32 --name first --seed 7 --workers 0 --keep -1"
    cli = TrainingCLI("fit", ["--config", "digits/flatten_deit", "--model.model_args", TINY, *DRY, *short.split()])
    config = cli.config
    assert (config.model.optim.lr, config.model.optim.weight_decay) == (2e-3, 0.1)
    assert (config.trainer.max_epochs, config.data.batch_size, config.data.img_size) == (5, 16, 32)
    assert (config.name, config.seed_everything, config.data.num_workers) == ("first", 7, 0)
    assert config.checkpoint.save_top_k == -1
    assert cli.datamodule.preprocessing.img_size == 32


def test_an_image_size_reaches_training_and_evaluation_of_a_detector() -> None:
    args = ["--img_size", "96", "--backbone", "flatten_pvt_tiny", "--pretrained"]
    long = ["--data.sizes", "[96]", "--model.model_args.min_size", "96", "--model.model_args.backbone", "flatten_pvt_tiny"]
    assert expand(args, "detect") == [*long, "--model.model_args.backbone_args.pretrained", "true"]


def options_of(task: str) -> set[str]:
    recipe = {"classify": "digits/flatten_deit", "detect": "scenes/mask_rcnn_flatten_pvt_v2", "distill": "linearize/stage1"}
    config = recipe.get(task, "scenes/semantic_fpn_flatten_pvt_v2")
    seen: list[Parser] = []

    class Look(TrainingCLI):
        def parse_arguments(self, parser: object, args: object) -> None:
            assert isinstance(parser, Parser)
            seen.append(parser)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Look("fit", ["--config", config])
    return {option.removeprefix("--") for option in seen[0]._option_string_actions}


@pytest.mark.parametrize("task", TASKS)
def test_every_short_option_and_every_word_leads_to_an_option_that_exists(task: str) -> None:
    known = options_of(task)
    for short in short_options(task).values():
        for long in short.long:
            name = long.partition("=")[0]
            assert name in known or name.startswith("model.model_args."), name
    for meant in words(task).values():
        assert all(
            name.strip("()-").startswith("model.model_args.") or name.strip("()-") in {*known, *short_options(task)}
            for name in meant.split()
        ), meant


@pytest.mark.parametrize("long", [["--model.optim.lr", "1e-2"], ["--model.optim.lr=1e-2"]])
def test_both_names_of_an_option_are_an_error(long: list[str]) -> None:
    with pytest.raises(ValueError, match=r"--lr and --model\.optim\.lr are the same: give one of them"):
        expand(["--lr", "1e-3", *long], "classify")


def test_a_short_option_without_its_value_says_what_it_is() -> None:
    with pytest.raises(ValueError, match="--epochs needs a value: times through the training images"):
        expand(["--epochs", "--lr", "1e-3"], "classify")


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("--learning_rate 1e-3", r"did you mean --lr \(--model\.optim\.lr\)\?"),
        ("--epoch 3", r"did you mean --epochs \(--trainer\.max_epochs\)\?"),
        ("--imgsz 64", r"did you mean --img_size \(--data\.img_size\)\?"),
        ("--num-epochs 3", r"did you mean --epochs \(--trainer\.max_epochs\)\?"),
        ("--trainer.lr 1e-3", r"did you mean --lr \(--model\.optim\.lr\)\?"),
        ("--max_epochs 3", r"did you mean --epochs \(--trainer\.max_epochs\)\?"),
        ("--accelerator cpu", r"did you mean --trainer\.accelerator\?"),
        ("--model.learning_rate 1e-3", r"did you mean --lr"),
        ("--trainer.max_epoch 3", r"unrecognized arguments: --trainer\.max_epoch 3: did you mean --trainer\.max_epochs"),
        ("--conf digits/flatten_deit", "did you mean --config"),
    ],
)
def test_a_wrong_option_is_answered_by_what_was_meant(typed: str, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        TrainingCLI("fit", ["--config", "digits/flatten_deit", *DRY, *typed.split()])


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--pretrained", "false"], {"img_size": 96, "pretrained": False}),
        (["--model.model_args.backbone_args.drop_path_rate", "1e-1"], {"drop_path_rate": 0.1}),
        (["--model.model_args.backbone_args", "{depths: [1]}", "--pretrained"], {"depths": [1], "pretrained": True}),
        (["--model.model_args", "{backbone_args: {a: 1}}", "--model.model_args.backbone_args.b.c=2"], {"a": 1, "b": {"c": 2}}),
    ],
)
def test_an_option_deep_in_a_mapping_keeps_the_rest_of_it_and_its_type(options: list[str], wanted: dict[str, object]) -> None:
    args = prepare("fit", ["--config", "scenes/mask_rcnn", *options])
    came = yaml.safe_load(args[-1])
    assert {name: came[name] for name in wanted} == wanted
    if "depths" not in wanted and "a" not in wanted:
        assert came["embed_dims"] == [32, 48, 96, 128]
