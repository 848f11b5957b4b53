"""Published weights: downloaded once, and kept only if readable."""

from __future__ import annotations

import os
import re
import secrets
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit

import torch

from flatten_transformer.models.cures import NoWeightsError, UnreachableError
from flatten_transformer.models.fit_weights import StateDict
from flatten_transformer.models.read_weights import in_one_line, one_line, read_tensors

_DIGEST = re.compile(r"-([0-9a-f]{8,64})\.")  # the beginning of a SHA-256, as in PyTorch's and timm's links


def fetch_tensors(url: str, file: Path) -> StateDict:
    """Return the tensors of published weights; download them unless ``file`` holds them intact.

    A download is read, checksums included, before it gets its name: neither error pages nor partial files are kept. An
    unreadable file is downloaded again.

    Args:
        url: URL of the weights. Where it holds the beginning of their SHA-256, as ``-5c106cde.pth``, they must match it.
        file: Their local file; missing folders are made.

    Raises:
        ConnectionError: If the download fails.
        ValueError: If the download is something else.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> torch.save({"bias": torch.zeros(1)}, folder / "published.pth")
        >>> fetch_tensors((folder / "published.pth").as_uri(), folder / "cache" / "kept.pth")
        {'bias': tensor([0.])}
    """
    if file.exists():
        try:
            return read_tensors(file)
        except ValueError:
            pass  # left by an earlier version, or damaged since
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{secrets.token_hex(4)}.tmp")
    try:
        _download(url, draft)
        read_tensors(draft)
        os.replace(draft, file)
    except ValueError as error:
        reason = one_line(error).replace(f"{draft} ", "")
        problem = f"what {url} gives is not the weights ({reason}): nothing was kept"
        raise NoWeightsError(problem, "try again later") from error
    finally:
        draft.unlink(missing_ok=True)
    return read_tensors(file)


def _download(url: str, file: Path) -> None:
    digest = _DIGEST.search(urlsplit(url).path.rpartition("/")[2])
    try:
        if digest:
            torch.hub.download_url_to_file(url, str(file), hash_prefix=digest[1])
        else:
            torch.hub.download_url_to_file(url, str(file))
    except RuntimeError as error:  # a wrong digest
        raise ValueError(one_line(error)) from error
    except (OSError, HTTPException) as error:  # urllib's errors included
        raise UnreachableError(f"cannot fetch {url} ({in_one_line(str(error))})", "try again later") from None
