"""Train the smallest model of each task for two steps, keep its files here, and what they do; README.md has the command."""

from __future__ import annotations

import lzma
import os
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from flatten_transformer.data.scenes import SceneSettings, write_scenes
from flatten_transformer.tasks.model_file import load_model
from flatten_transformer.training.cli import TrainingCLI, train
from flatten_transformer.training.process import without_lightning_noise
from tests.coco_files import write_coco

HERE = Path(__file__).parent
TASKS = ("classify", "detect", "segment")
FILES = ("last.ckpt", "model.safetensors")
LIVE = 4  # channels of a segmenter's decoder that are not zero; the others stay so and take no space in a compressed file


def write_data() -> None:
    """Write what the recipes learn from into data/."""
    write_coco(Path("data/coco"))
    write_scenes(Path("data/scenes"), SceneSettings(train=4, val=1, test=1, height=64, width=64, most=2))


def predictions(model_file: Path, task: str) -> dict[str, Tensor]:
    """Return what a model says of an image without a random number."""
    model, _ = load_model(model_file)
    channels, size = (1, 16) if task == "classify" else (3, 64)
    image = torch.arange(channels * size * size, dtype=torch.float64).mul(0.37).sin().float().reshape(channels, size, size)
    with torch.inference_mode():
        if task == "detect":
            found: dict[str, Tensor] = model([image])[0]
            return {**found, "masks": found["masks"].float().mean((1, 2))}
        logits: Tensor = model(image[None])
        return {"logits": logits[..., ::8, ::8] if task == "segment" else logits}


def resume(checkpoint: Path, task: str) -> dict[str, Tensor]:
    """Return the losses of the epoch that follows a checkpoint."""
    options = ["--ckpt_path", str(checkpoint), "--trainer.max_epochs", "2", "--trainer.logger", "false"]
    trainer = train("fit", ["--config", str(HERE / f"{task}.yaml"), *options]).trainer
    assert (trainer.current_epoch, trainer.global_step) == (2, 4)
    kept = torch.load(checkpoint, weights_only=True)["callbacks"]  # Lightning passes over those that nobody claims
    assert kept.keys() <= {callback.state_key for callback in trainer.callbacks}  # type: ignore[attr-defined]
    return {name: value for name, value in trainer.callback_metrics.items() if name.endswith("loss")}


def make(task: str) -> dict[str, Tensor]:
    """Train by the recipe of a task and keep the files; return what they do."""
    cli = TrainingCLI("fit", ["--config", str(HERE / f"{task}.yaml")])
    enliven(cli.model.model)
    if cli.model.ema is not None:
        cli.model.ema.module.load_state_dict(cli.model.model.state_dict())
    with cli.locked():
        cli.run()
    folder = Path(f"runs/{task}/version_0/checkpoints")
    for name in FILES:
        (HERE / f"{task}.{name}.xz").write_bytes(lzma.compress((folder / name).read_bytes(), preset=9))
    return predictions(folder / "model.safetensors", task) | resume(folder / "last.ckpt", task)


@torch.no_grad()
def enliven(model: nn.Module) -> None:
    """Make weights loud enough to tell apart what the model says, and those of a segmenter's wide convolutions sparse."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.add_(torch.randn_like(parameter) / parameter[0].numel() ** 0.5)
        if name.startswith("decoder.") and parameter.ndim == 4:
            parameter[LIVE:] = 0
        if name.startswith(("decoder.", "head.")) and parameter.ndim == 4:
            parameter[:, LIVE:] = 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    work = Path(tempfile.gettempdir(), "example")  # its path is in the checkpoints
    work.mkdir()
    os.chdir(work)
    write_data()
    with without_lightning_noise():
        found = {f"{task}.{name}": value.contiguous() for task in TASKS for name, value in make(task).items()}
    save_file(found, HERE / "expected.safetensors")
