"""Published weights: fetched once, and kept only if they can be read."""

from __future__ import annotations

import os
import re
import secrets
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit

import torch

from flatten_transformer.models.fit_weights import StateDict
from flatten_transformer.models.read_weights import one_line, read_tensors

_DIGEST = re.compile(r"-([0-9a-f]{8,64})\.")  # the beginning of a SHA-256, as PyTorch's and timm's links carry it


def fetch_tensors(url: str, file: Path) -> StateDict:
    """Return the tensors of published weights; fetch them unless ``file`` has them whole.

    What came is read, its checksums too, before it gets its name: a server's page about an error is not kept, nor half a
    file. What lies there and cannot be read is fetched anew.

    Args:
        url: Of the weights. Where it carries the beginning of their SHA-256, as ``-5c106cde.pth``, they must have it.
        file: Where they are kept; missing folders are made.

    Raises:
        ConnectionError: If they cannot be fetched.
        ValueError: If something else came.

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
        raise ValueError(
            f"what {url} gives is not the weights ({reason}): nothing was kept; try again later, or download them elsewhere "
            "and pass pretrained_cfg_overlay={'file': path}"
        ) from error
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
    except RuntimeError as error:  # another digest
        raise ValueError(one_line(error)) from error
    except (OSError, HTTPException) as error:  # of which urllib's errors are one kind
        raise ConnectionError(
            f"cannot fetch {url} ({error}): download it elsewhere and pass pretrained_cfg_overlay={{'file': path}}"
        ) from None
