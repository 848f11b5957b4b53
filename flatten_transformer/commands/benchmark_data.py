"""`flatten benchmark data`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.table import Table

from flatten_transformer.benchmark import arguments
from flatten_transformer.benchmark.output import FOLDER
from flatten_transformer.benchmark.training import build_recipe, finish, measure_pipeline, open_kept_recipe
from flatten_transformer.training.process import without_lightning_noise
from flatten_transformer.training.recipes import say_full_name
from flatten_transformer.utils.progress import track
from flatten_transformer.utils.terminal import cell


def data(
    recipe: str,
    /,
    root: Path | None = None,
    workers: str = "0,1,2",
    budget_s: float = 10.0,
    resume: bool = True,
    folder: Path = FOLDER,
) -> None:
    """Measure the throughput of a recipe's training images: read, augmented and batched.

    Args:
        recipe: Name or file of a recipe.
        root: Data folder, if the recipe names none.
        workers: Numbers of data loading workers, separated by commas; each is measured.
        budget_s: Seconds for each number of workers.
        resume: Go on after what an earlier start with the same options, on the same machine and code, has finished; false
            begins anew, in another file.
        folder: Folder of data.json, rewritten after each number of workers; data_2.json and so on if it holds other results.
    """
    arguments.check_positive(budget_s=budget_s)
    recipe = say_full_name(recipe)
    counts = arguments.integers(workers, "workers", minimum=0)
    options = {"root": root, "workers": workers, "budget_s": budget_s}
    kept = open_kept_recipe(folder / "data.json", recipe, options, len(counts), "numbers of workers", resume=resume)
    results: list[dict[str, Any]] = list(kept.content.get("pipelines", []))
    left = track(counts[kept.finished :], "workers: {}".format, done=kept.finished)
    with kept.telling(), TemporaryDirectory() as runs, without_lightning_noise(), left as counts_left:
        for count in counts_left:
            module = build_recipe(recipe, root, runs, f"--data.num_workers={count}").datamodule
            results.append(asdict(measure_pipeline(module, budget_s)))
            kept.write(len(results), {"recipe": recipe, "pipelines": results})
    table = Table("processes", "images a second", "first batch", title=cell(f"{recipe}: images of training"))
    with kept.reading():
        for row in results:
            table.add_row(str(row["workers"]), f"{row['images_per_s']:.0f}", f"{row['first_batch_s']:.2f} s")
    finish(table, kept)
