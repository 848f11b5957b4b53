"""Report of an analysis: one self-contained HTML file, and its numbers as JSON."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape as escape_html
from pathlib import Path
from typing import Any

import timm
import torch

from flatten_transformer import __version__
from flatten_transformer.analysis.angles import Angles
from flatten_transformer.analysis.metrics import LayerNumbers
from flatten_transformer.analysis.study import Options, Study
from flatten_transformer.utils.atomic_file import write_atomically
from flatten_transformer.utils.printable import printable

_MEASURES = {
    "rank": ("rank", "{:.0f}"),
    "effective_rank": ("effective rank", "{:.1f}"),
    "entropy_bits": ("entropy, bits", "{:.2f}"),
    "top_k_mass": ("top-{top_k} mass", "{:.3f}"),
    "similarity": ("output cosine", "{:.3f}"),
}
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 1200px; margin: 2em auto; padding: 0 1em }
img { max-width: 100% } figure { margin: 1em 0 } figcaption { color: #555 }
table { display: block; overflow-x: auto; border-collapse: collapse; margin: 1em 0;
  font-variant-numeric: tabular-nums; font-size: 13px }
th, td { padding: .2em .7em; text-align: right; border-bottom: 1px solid #e4e4e4 }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left }
"""
_NOTES = """
<p>Every number is a mean over the heads of a layer, in float64. <b>Rank</b>: singular values above max(N, M) · ε · the
largest. <b>Effective rank</b>: exp of the entropy of the normalised singular values (Roy &amp; Vetterli 2007).
<b>Entropy</b> and <b>top-{top_k} mass</b>: of the magnitudes of a row, divided by their sum; layers marked ± have negative
weights, and with the convolution every design may. <b>Output cosine</b>: mean over all pairs of tokens. Where a head has
several matrices, as with the convolution, at most {channels} of its channels were looked at, evenly spread.
<b>Moved as stated</b>: share of the query-key pairs whose cosine focusing moved as Proposition 1 of FLatten has it: up where
the largest entries coincide / down where they differ.</p>
"""


def write_report(folder: Path, image: Path, studies: Sequence[Study], pictures: Mapping[str, bytes], options: Options) -> Path:
    """Write ``report.html``, ``numbers.json`` and the pictures into a folder, each file atomically.

    Args:
        folder: Made if it is missing.
        image: The image file, for the title.
        studies: One for each model.
        pictures: PNG files by name; the text before a first ``:`` is the file's name, the rest its caption.
        options: Options of the studies.

    Returns:
        The path of the HTML file.
    """
    for name, content in pictures.items():
        write_atomically(folder / f"{name.partition(':')[0]}.png", content)
    write_numbers(folder, image, studies, options)
    report = folder / "report.html"
    write_atomically(report, to_html(image, studies, pictures, options).encode())
    return report


def write_numbers(folder: Path, image: Path, studies: Sequence[Study], options: Options) -> None:
    """Write ``numbers.json`` into a folder, atomically.

    Args:
        folder: Made if it is missing.
        image: The image file.
        studies: One for each model.
        options: Options of the studies.
    """
    write_atomically(folder / "numbers.json", json.dumps(to_json(image, studies, options), indent=1).encode())


def to_json(image: Path, studies: Sequence[Study], options: Options) -> dict[str, Any]:
    """Return all numbers by model, layer and head, with options and versions."""
    return {
        "image": str(image),
        "options": asdict(options),
        "versions": {"flatten_transformer": __version__, "torch": torch.__version__, "timm": timm.__version__},
        "models": [
            {
                "label": study.model.label,
                "about": study.model.about,
                "query": study.query,
                "layers": [asdict(layer) for layer in study.layers],
                "angles": {name: asdict(angles) for name, angles in study.angles.items()},
            }
            for study in studies
        ],
    }


def to_html(image: Path, studies: Sequence[Study], pictures: Mapping[str, bytes], options: Options) -> str:
    """Return the report with its pictures embedded."""
    title = escape(f"Attention on {image.name}")
    models = "".join(f"<li><b>{escape(study.model.label)}</b>: {escape(study.model.about)}</li>" for study in studies)
    figures = "".join(_figure(name.partition(":")[2], content) for name, content in pictures.items())
    tables = "".join(_model_tables(study, options) for study in studies)
    notes = _NOTES.format(top_k=options.top_k, channels=options.channels)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{title}</title><style>{_STYLE}</style></head>'
        f"<body><h1>{title}</h1><ul>{models}</ul>{figures}<h2>Numbers</h2>{notes}{tables}</body></html>\n"
    )


def escape(text: str) -> str:
    """Return text for HTML, without markup, control characters or invalid ones."""
    return escape_html(printable(text))


def _figure(caption: str, content: bytes) -> str:
    data = base64.b64encode(content).decode()
    text = escape(caption)
    return f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'


def _model_tables(study: Study, options: Options) -> str:
    names = [name.format(top_k=options.top_k) for name, _ in _MEASURES.values()]
    restored = any(head.restored for layer in study.layers for head in layer.heads)
    head = ["layer", "attention", "tokens", *names, *([f"{name}, restored" for name in names] if restored else [])]
    head += ["moved as stated"] if study.angles else []
    rows = [_row(layer, study.angles.get(layer.name), restored, bool(study.angles)) for layer in study.layers]
    by_head = [_head_row(layer, index, restored) for layer in study.layers for index in range(len(layer.heads))]
    details = (
        f"<details><summary>by head</summary>{_table(['layer', 'head', *head[3 : 3 + len(by_head[0]) - 2]], by_head)}</details>"
    )
    return f"<h3>{escape(study.model.label)}</h3>{_table(head, rows)}{details}"


def _row(layer: LayerNumbers, angles: Angles | None, restored: bool, focused: bool) -> list[str]:
    tokens = f"{layer.queries}" if layer.queries == layer.keys else f"{layer.queries} × {layer.keys}"
    tokens += f" × {layer.windows} windows" if layer.windows > 1 else ""
    cells = [layer.name, f"{layer.design}{' ±' * layer.negative}", tokens]
    for with_convolution in (False, True)[: 1 + restored]:
        cells += [_format(layer.mean(key, restored=with_convolution), form) for key, (_, form) in _MEASURES.items()]
    if focused:
        moved = None if angles is None else angles.moved_as_stated
        cells.append("" if moved is None else f"{moved['same']:.0%} / {moved['other']:.0%}")
    return cells


def _head_row(layer: LayerNumbers, index: int, restored: bool) -> list[str]:
    head = layer.heads[index]
    cells = [layer.name, str(index)]
    for numbers in (head.attention, head.restored)[: 1 + restored]:
        cells += [_format(None if numbers is None else getattr(numbers, key), form) for key, (_, form) in _MEASURES.items()]
    return cells


def _format(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr></thead><tbody>{lines}</tbody></table>"
