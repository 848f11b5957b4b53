"""What `flatten fit`, `validate` and `test` say before anything is imported to train: help, and what recipes there are."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from flatten_transformer.training.arguments import Stage, check_recipe
from flatten_transformer.training.recipe_table import recipe_table
from flatten_transformer.training.short_options import short_options, split
from flatten_transformer.utils.printable import columns

_SUMMARIES = {
    "fit": "Train a model by a recipe.",
    "validate": "Judge a checkpoint on the validation images.",
    "test": "Judge a checkpoint on the test images.",
}
_RUN = "runs/finetune/version_0"
_EXAMPLES = {
    "fit": {
        "--config digits/flatten_deit": "a recipe by name; no download",
        "--config finetune --data pets/ --epochs 5 --lr 1e-3": "your images, in pets/cat/, pets/dog/ …",
        "--config finetune --data pets/ --model resnet18": "any timm model",
        "--config detect --data street/ --name first-try": "the folder of the run",
        "--config detect --data street/ --name first-try --ckpt_path last": "go on where it stopped",
    },
    **{
        stage: {
            "--config finetune --data pets/ --ckpt_path best": "the newest run of the recipe",
            "--config finetune --data pets/ --name first-try --ckpt_path best": "the newest of a name",
            f"--config {_RUN}/config.yaml --ckpt_path last": "this run",
            f"--ckpt_path {_RUN}/checkpoints/last.ckpt": "with the settings of its run",
            "--config finetune --data others/ --ckpt_path best": "on other images",
        }
        for stage in ("validate", "test")
    },
}
_OWN = {
    "config": "recipe, or a YAML file of your own; several are merged, the last counts most",
    "name": "name of the run, its folder in runs/<recipe>/; without one, version_0, version_1 …",
    "ckpt_path": "checkpoint to go on from or to judge; last or best: of the newest run of this recipe and name",
    "import": "module or .py file that registers attentions, models, data sets or tasks of yours",
}


def answer(stage: Stage, args: Sequence[str]) -> bool:
    """Answer ``--help``, or list the recipes where none is given; return whether the command is done with.

    Args:
        stage: Stage that would run.
        args: Arguments after the command name.

    Raises:
        ValueError: If there is no recipe.
    """
    if {"-h", "--help"} & {option for option, _ in split(args)}:
        sys.stdout.write(screen(stage))
        return True
    if "--help-all" not in args:
        try:
            check_recipe(stage, split(args))
        except ValueError:
            if stage == "fit":
                sys.stdout.write(f"{recipe_table()}\n")
            raise
    return False


def screen(stage: Stage) -> str:
    """Return the help that fits on a screen.

    Example:
        >>> screen("fit").splitlines()[0]
        'flatten fit --config RECIPE [OPTION VALUE]…'
    """
    examples = [(f"flatten {stage} {arguments}", remark) for arguments, remark in _EXAMPLES[stage].items()]
    options = [("--" + name, text) for name, text in _OWN.items()]
    options += [("--" + name, option.help) for name, option in short_options("classify").items()]
    more = [
        (f"flatten {stage} --config RECIPE --help-all", "every option of its task, data and trainer"),
        (f"flatten {stage} --config RECIPE --print_config", "its settings, as YAML"),
        ("flatten recipes", "the recipes: data, model, hardware, time"),
    ]
    blocks = {"Examples": examples, "Options, those that everyone changes": options, "More": more}
    lines = [f"flatten {stage} --config RECIPE [OPTION VALUE]…", "", _SUMMARIES[stage]]
    for title, rows in blocks.items():
        lines += ["", title, *(f"  {line}" for line in columns(rows))]
    return "\n".join([*lines, ""])
