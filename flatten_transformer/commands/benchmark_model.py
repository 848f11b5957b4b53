"""`flatten benchmark model`."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from flatten_transformer.benchmark import arguments
from flatten_transformer.benchmark.kept import open_kept
from flatten_transformer.benchmark.machine import choose_device, describe
from flatten_transformer.benchmark.model import MODELS, NAMESAKES, contender_names, make_cases, measure
from flatten_transformer.benchmark.output import FOLDER, finish, run_races, show_race
from flatten_transformer.benchmark.race import DIRECTIONS, Plan
from flatten_transformer.benchmark.report import Report


def model(
    models: str = ",".join(MODELS),
    sizes_px: str = "224",
    batch: int = 8,
    dtypes: str | None = None,
    directions: str = ",".join(DIRECTIONS),
    contenders: str = "all",
    compiled: bool = False,
    device: str = "auto",
    budget_s: float = 30.0,
    limit_s: float = 30.0,
    quick: bool = False,
    resume: bool = True,
    folder: Path = FOLDER,
) -> None:
    """Race FLatten models against their softmax namesakes and against themselves on the released form, side by side.

    Args:
        models: Model names, separated by commas; see `flatten models`.
        sizes_px: Sides of the images, multiples of 32 separated by commas, such as 224,384,512,1024.
        batch: Images per batch.
        dtypes: Some of float32, bfloat16, float16, float64, for images and weights; by default float32 on the CPU and
            bfloat16 on a GPU.
        directions: Some of forward (inference) and forward+backward (a training step without the optimiser).
        contenders: Some of ours, released, softmax, and with `--compiled true` ours-compiled and so on; or all.
        compiled: Also race each under torch.compile, which takes a minute or more per point to start.
        device: cpu, cuda, or auto: a GPU if there is one.
        budget_s: Seconds of timing per point, for all contenders together.
        limit_s: Contenders with slower calls, in seconds, are left out.
        quick: Half a second per point: to see it run, not to quote.
        resume: Go on after the races that an earlier start with the same options, on the same machine and code, has finished;
            false begins anew, in another file.
        folder: Folder of model.json, rewritten after each race, and model.png; model_2.json and so on if it holds other
            results.
    """
    options = {name: value for name, value in locals().items() if name not in ("resume", "folder")}
    arguments.check_positive(budget_s=budget_s, limit_s=limit_s, batch=batch)
    selected = arguments.words_or_all(contenders, "contenders", contender_names(compiled=compiled))
    where = choose_device(device)
    cases = make_cases(
        arguments.words(models, "models", NAMESAKES),
        arguments.integers(sizes_px, "sizes_px"),
        batch,
        arguments.parse_dtypes(dtypes, where),
        arguments.words(directions, "directions", DIRECTIONS),
    )
    kept = open_kept(folder / "model.json", describe(where), options, len(cases), "races", resume=resume)
    plan = Plan(cases, where, arguments.limits(budget_s, limit_s, quick), selected, compiled)
    finish(run_races(kept, [(plan, measure)], partial(Report, kept.header), show_race), kept.path)
