"""`flatten analyze`: how the attention of models looks at an image, as numbers, pictures and a report."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from flatten_transformer.analysis.comparison import draw_ranks, draw_sharpness
from flatten_transformer.analysis.models import AnalyzedModel, load_models
from flatten_transformer.analysis.plots import draw_angles, draw_matrix, draw_queries
from flatten_transformer.analysis.report import write_numbers, write_report
from flatten_transformer.analysis.selection import parse_query
from flatten_transformer.analysis.study import Options, Study, study_model
from flatten_transformer.utils.atomic_file import check_outputs
from flatten_transformer.utils.font_fallback import FallbackFonts
from flatten_transformer.utils.progress import track
from flatten_transformer.utils.stopping import telling_what_is_kept

_SHARED_PLOTS, _MODEL_PLOTS = ("rank", "sharpness"), ("attention", "restored", "matrix", "angles")
_MAX_LABEL = 100  # characters of a label in a file name


def analyze(
    image: Path,
    /,
    checkpoint: str | None = None,
    model: str | None = None,
    attention: str | None = None,
    model_args: dict[str, Any] | None = None,
    pretrained_file: Path | None = None,
    img_size: int | None = None,
    query: str | None = None,
    block: int = -1,
    head: int = 0,
    top_k: int = 10,
    channels: int = 4,
    max_tokens: int = 1024,
    folder: Path = Path("runs/analysis"),
) -> None:
    """Show how the attention of one model or several looks at an image: ranks, sharpness, pictures, a report.

    Args:
        image: An image file.
        checkpoint: The model.safetensors of a training, or several separated by commas.
        model: timm's names, separated by commas, also of softmax models; untrained, unless pretrained_file is given.
        attention: Attentions of the FLatten models of --model, separated by commas, such as relu,focused,softmax.
        model_args: Further arguments of timm's models in --model, such as {class_token: true}.
        pretrained_file: Weights file of a single --model.
        img_size: Side of the image in pixels, instead of the model's own.
        query: ROW,COLUMN of the token whose attention is shown, counted from 0 on the finest grid of tokens; by default
            the centre, of grey images the token with the most ink.
        block: Layer whose matrix and angles are shown, counted from 0; negative counts from the last.
        head: Head that is shown.
        top_k: Number of weights in the top-k mass of a row.
        channels: Channels per head to analyze where each has its own matrix, as in the convolution.
        max_tokens: Layers with more tokens are left out: time grows with the cube.
        folder: Folder of report.html, numbers.json and the pictures.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If an argument names something that does not exist; the message lists the choices.
    """
    from flatten_transformer.utils.terminal import say

    options = Options(None if query is None else parse_query(query), block, head, top_k, channels, max_tokens)
    if folder.is_file():
        raise ValueError(f"{folder} is a file: give --folder the name of a folder")
    models = load_models(
        image,
        checkpoint=checkpoint,
        model=model,
        attention=attention,
        model_args=model_args,
        pretrained_file=pretrained_file,
        img_size=img_size,
    )
    files = [Path(file.strip()) for file in (checkpoint or "").split(",")] + (
        [] if pretrained_file is None else [pretrained_file]
    )
    check_outputs([folder / name for name in file_names(models)], [image, *files])
    studies: list[Study] = []
    kept = partial(_kept, folder, studies, len(models))
    with telling_what_is_kept(kept), track(models, lambda model: f"analyzing {model.label}") as tracked:
        try:
            for each in tracked:
                studies.append(study_model(each, options))
                write_numbers(folder, image, studies, options)  # at once: pictures take their time
        finally:  # keep the results of earlier models
            if studies:
                report = write_report(folder, image, studies, dict(draw(studies, options)), options)
                say(f"Report: {report}, numbers and pictures beside it")


def _kept(folder: Path, studies: Sequence[Study], count: int) -> str:
    if not studies:
        return f"none of {count} models was finished"
    return f"the numbers of {len(studies)} of {count} models are kept in {folder}; the same command measures all anew"


def file_names(models: Sequence[AnalyzedModel]) -> list[str]:
    """Return the names of all files that an analysis may write."""
    pictures = [f"{prefix}{name}.png" for prefix in _prefixes(models) for name in _MODEL_PLOTS]
    return ["report.html", "numbers.json", *(f"{name}.png" for name in _SHARED_PLOTS), *pictures]


def _prefixes(models: Sequence[AnalyzedModel]) -> list[str]:
    """Return the file name prefix of each model's pictures."""
    if len(models) == 1:
        return [""]
    prefixes: list[str] = []
    for model in models:
        stem = re.sub(r"[^\w.-]+", "_", model.label)[:_MAX_LABEL]
        names = (f"{stem}_" if number == 1 else f"{stem}_{number}_" for number in itertools.count(1))
        prefixes.append(next(name for name in names if name not in prefixes))
    return prefixes


def draw(studies: Sequence[Study], options: Options) -> Iterator[tuple[str, bytes]]:
    """Yield the pictures, as PNG, under names ``file:caption``."""
    fonts = FallbackFonts([study.model.label for study in studies])
    with fonts.styled():
        yield from _draw_all(studies, options, fonts)


def _draw_all(studies: Sequence[Study], options: Options, fonts: FallbackFonts) -> Iterator[tuple[str, bytes]]:
    models = {fonts.plot(study.model.label): study.layers for study in studies}
    yield "rank:Rank of the attention by layer: numerical, and effective (how many directions share it)", draw_ranks(models)
    yield (
        "sharpness:How sharp the rows are, and how much alike the output tokens, by layer",
        draw_sharpness(models, options.top_k),
    )
    for study, prefix in zip(studies, _prefixes([study.model for study in studies]), strict=True):
        for name, content in _draw_model(study, options.head, fonts.plot(study.model.label)):
            file, _, caption = name.partition(":")
            yield f"{prefix}{file}:{study.model.label}: {caption}", content


def _draw_model(study: Study, head: int, label: str) -> Iterator[tuple[str, bytes]]:
    name = study.matrix.name
    if study.queries:
        image = study.model.image.squeeze(2).cpu().numpy()
        where = f"head {head}, query token {study.query[0]},{study.query[1]}" if study.query else ""
        yield (
            f"attention:where the query token looks in each layer, {where}",
            draw_queries(image, study.queries, f"{label}: attention of one query, {where}"),
        )
        if any(view.restored is not None for view in study.queries):
            yield (
                f"restored:the same with the convolution, {where}",
                draw_queries(image, study.queries, f"{label}: attention + convolution of one query, {where}", restored=True),
            )
    yield f"matrix:the matrix of {name}, head {head}", draw_matrix(study.matrix, f"{label}: {name}, head {head}")
    if name in study.angles:
        title = f"{label}: {name}, what focusing does to angles (all heads)"
        yield f"angles:cosines of queries and keys before and after focusing in {name}", draw_angles(study.angles[name], title)
