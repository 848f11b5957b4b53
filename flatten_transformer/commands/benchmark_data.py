"""`flatten benchmark data`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.progress import track
from rich.table import Table

from flatten_transformer.benchmark import arguments
from flatten_transformer.benchmark.output import FOLDER
from flatten_transformer.benchmark.training import build_recipe, finish, measure_pipeline
from flatten_transformer.training.process import without_lightning_noise
from flatten_transformer.training.recipes import find_recipe, say_full_name
from flatten_transformer.utils.atomic_file import check_outputs
from flatten_transformer.utils.terminal import cell


def data(recipe: str, /, root: Path | None = None, workers: str = "0,1,2", budget_s: float = 10.0, folder: Path = FOLDER) -> None:
    """Measure the throughput of a recipe's training images: read, augmented and batched.

    Args:
        recipe: Name or file of a recipe.
        root: Data folder, if the recipe names none.
        workers: Numbers of data loading workers, separated by commas; each is measured.
        budget_s: Seconds for each number of workers.
        folder: Folder of data.json.
    """
    arguments.check_positive(budget_s=budget_s)
    recipe = say_full_name(recipe)
    check_outputs([folder / "data.json"], [find_recipe(recipe)])
    counts = arguments.integers(workers, "workers", minimum=0)
    with TemporaryDirectory() as runs, without_lightning_noise():
        results = [
            measure_pipeline(build_recipe(recipe, root, runs, f"--data.num_workers={count}").datamodule, budget_s)
            for count in track(counts, "loading", transient=True)
        ]
    table = Table("processes", "images a second", "first batch", title=cell(f"{recipe}: images of training"))
    for row in results:
        table.add_row(str(row.workers), f"{row.images_per_s:.0f}", f"{row.first_batch_s:.2f} s")
    finish(table, {"recipe": recipe, "pipelines": [asdict(row) for row in results]}, folder / "data.json")
