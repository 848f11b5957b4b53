"""`flatten analyze`: how the attention of models looks at an image, as numbers, pictures and a report."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from flatten_transformer.analysis.choice import parse_query
from flatten_transformer.analysis.comparison import draw_ranks, draw_sharpness
from flatten_transformer.analysis.pictures import draw_angles, draw_matrix, draw_queries
from flatten_transformer.analysis.report import write_report
from flatten_transformer.analysis.study import Options, Study, conduct
from flatten_transformer.analysis.subjects import find_subjects


def analyze(
    image: Path,
    /,
    checkpoint: str | None = None,
    model: str | None = None,
    attention: str | None = None,
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
        attention: What the FLatten models of --model attend by, separated by commas, such as relu,focused,softmax.
        pretrained_file: A file with weights of the one --model.
        img_size: Side of the image in pixels, instead of the model's own.
        query: ROW,COLUMN of the token whose attention is shown, counted from 0 on the finest grid of tokens; by default
            the centre, of grey images the token with the most ink.
        block: Which attention's matrix and angles are shown, counted from 0; negative counts from the last.
        head: Which head's.
        top_k: How many weights of a row count for its top-k mass.
        channels: How many channels of each head are looked at where they have matrices of their own, as the convolution.
        max_tokens: Attentions with more tokens are left out: time grows with the cube.
        folder: Where report.html, numbers.json and the pictures go.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If an argument names what does not exist; the message lists what does.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import track

    options = Options(None if query is None else parse_query(query), block, head, top_k, channels, max_tokens)
    if folder.is_file():
        raise ValueError(f"{folder} is a file: give --folder the name of a folder")
    subjects = find_subjects(
        image,
        checkpoint=checkpoint,
        model=model,
        attention=attention,
        pretrained_file=pretrained_file,
        img_size=img_size,
    )
    console = Console()
    bar = track(subjects, "analyzing", transient=True, disable=not console.is_terminal)
    studies = [conduct(subject, options) for subject in bar]
    report = write_report(folder, image, studies, dict(draw(studies, options)), options)
    console.print(f"Report: {escape(str(report))}, numbers and pictures beside it", soft_wrap=True)


def draw(studies: Sequence[Study], options: Options) -> Iterator[tuple[str, bytes]]:
    """Yield the pictures, as PNG, under names ``file:caption``."""
    models = {study.subject.label: study.layers for study in studies}
    yield "rank:Rank of the attention by layer: numerical, and effective (how many directions share it)", draw_ranks(models)
    yield (
        "sharpness:How sharp the rows are, and how much alike the output tokens, by layer",
        draw_sharpness(models, options.top_k),
    )
    for study in studies:
        for name, content in _draw_model(study, options.head):
            file, _, caption = name.partition(":")
            label = re.sub(r"[^\w.-]+", "_", study.subject.label)
            yield f"{file if len(studies) == 1 else f'{label}_{file}'}:{study.subject.label}: {caption}", content


def _draw_model(study: Study, head: int) -> Iterator[tuple[str, bytes]]:
    label, name = study.subject.label, study.matrix.name
    if study.queries:
        image = study.subject.image.squeeze(2).cpu().numpy()
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
