"""What it costs to turn a softmax DeiT linear, and what is lost: attentions, kept blocks, stages and options, several seeds.

    export OMP_NUM_THREADS=1
    python benchmarks/linearize/run.py                  # everything that is not there yet, page and picture
    python benchmarks/linearize/run.py --seeds '[0]'    # for example beside another process with --seeds '[1]'
    python benchmarks/linearize/run.py --only '[softmax, focused]'
    python benchmarks/linearize/run.py --speed_s 120    # what each kind of step takes, on a machine that does nothing else
    python benchmarks/linearize/run.py --seeds '[]'     # page and picture alone

Each seed has a teacher of its own, which all students of that seed learn from. A run that is killed goes on where it was; each
result is a file in benchmarks/linearize/results/, which another start leaves alone.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

from jsonargparse import auto_cli

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from benchmarks.linearize.report import draw, page, rows_of
from benchmarks.linearize.speed import measure, shares_of_time
from benchmarks.linearize.trainings import BEFORE, NAMES, origin, run
from benchmarks.studies import check_names, results_in, run_missing
from flatten_transformer.utils.atomic_file import write_atomically
from flatten_transformer.utils.printable import lasting
from flatten_transformer.utils.progress import note
from flatten_transformer.utils.stopping import run_script

SPEED = HERE / "speed.json"


def main(seeds: list[int] = [0, 1, 2], only: list[str] = list(NAMES), speed_s: float = 0) -> None:  # noqa: B006
    """Train what is not there yet, seed after seed, then write the page and draw the picture.

    Args:
        seeds: Of the runs.
        only: Names in the table; a student needs a teacher, what is trained on what it begins with.
        speed_s: Seconds to spend on measuring the steps of all, in turn, instead of training.
    """
    check_names(only, NAMES)
    if speed_s:
        note(f"timing a step of each in turn, for {lasting(speed_s)}")
        write_atomically(SPEED, json.dumps(measure(speed_s), indent=1).encode())
    else:
        run_missing([(seed, name) for seed in seeds for name in only], HERE / "results", run, origin)
    times = shares_of_time(json.loads(SPEED.read_text())["median_us"]) if SPEED.exists() else {}
    rows = rows_of(results_in(HERE / "results"), NAMES, times)
    write_atomically(HERE / "README.md", page(rows, BEFORE).encode())
    draw(rows, BEFORE, HERE / "linearize.png")


if __name__ == "__main__":
    sys.exit(run_script(partial(auto_cli, main)))
