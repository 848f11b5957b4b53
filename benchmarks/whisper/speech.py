"""Speech of Debian packages: clips, cut and joined to what Whisper hears at once, and how many words of them it gets wrong."""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.io import wavfile
from scipy.signal import resample_poly
from torch import Tensor
from torchmetrics.functional.text import word_error_rate
from transformers import WhisperFeatureExtractor
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

RATE = 16_000  # samples a second
HEARD = 30 * RATE  # samples that Whisper hears at once
GAP = RATE // 2  # silence between clips
_ENGLISH, _FRENCH, _ITALIAN = (
    f"usr/share/asterisk/sounds/{voice}" for voice in ("en_US_f_Allison", "fr_CA_f_June", "it_IT_m_Carlo")
)
_NOVEL, _RADIO = "usr/share/pocketsphinx/test/data/librivox", "usr/share/codec2/wav"
_JOINED = "all"  # of codec2's clips: made of others
_FEWEST = 4  # words of a held-out clip: sentences, not single digits
_THIRD = 3  # one of so many sentences is held out

Waveform = NDArray[np.float32]


class Clip(NamedTuple):
    """A recording.

    Args:
        name: Its name.
        wave: Samples ``[S]`` between -1 and 1, 16 kHz.
        text: What is said; None: nobody has written it down.
    """

    name: str
    wave: Waveform
    text: str | None = None


class Speech(NamedTuple):
    """What models learn from and are judged on: 30 s each, filled with clips.

    Args:
        training: Input features ``[N, 80, 3000]``.
        held_out: Sets by name, in which no clip of the training is.
    """

    training: Tensor
    held_out: dict[str, HeldOut]


class HeldOut(NamedTuple):
    """A set of recordings to be judged on.

    Args:
        features: Input features ``[N, 80, 3000]``.
        texts: What is said in each, or None where nobody has written it down.
    """

    features: Tensor
    texts: list[str] | None


def read_speech(folder: Path, transcripts: Path, chunks: int) -> Speech:
    """Return all speech.

    Args:
        folder: Where the Debian packages were unpacked, all of them.
        transcripts: Asterisk's ``core-sounds-en.txt``.
        chunks: Number of 30 s to learn from.

    Raises:
        ValueError: If there is no such speech.
    """
    english = list(read_clips(folder / _ENGLISH, read_transcripts(transcripts.read_text("utf-8"))))
    prompts = [clip for clip in english if is_held_out(clip)]
    own = {clip.name for clip in prompts}
    others = [*read_clips(folder / _FRENCH), *read_clips(folder / _ITALIAN)]
    said = (folder / _NOVEL / "transcription").read_text("utf-8")
    novel = list(read_clips(folder / _NOVEL, {name: text for text, name in re.findall(r"<s>(.*)</s> \((.*)\)", said)}))
    radio = [clip for clip in read_clips(folder / _RADIO) if clip.name != _JOINED and fits(clip)]
    training = [*(clip for clip in english if clip.name not in own), *others]
    return Speech(
        features_of(wave for wave, _ in endless(training, chunks)),
        {name: held_out(clips) for name, clips in (("prompts", prompts), ("novel", novel), ("radio", radio))},
    )


def read_transcripts(text: str) -> dict[str, str]:
    r"""Return what is said in each file, by its name; lines are ``name: text``, and ``;`` begins a comment.

    Example:
        >>> read_transcripts("; English\nvm-and: and\nfollowme/sorry.wav: I'm sorry [sighs]")
        {'vm-and': 'and', 'followme/sorry': "I'm sorry"}
    """
    lines = [line.partition(": ") for line in text.splitlines() if not line.startswith(";")]
    said = {
        name.strip().removesuffix(".wav"): re.sub(r"[\[(].*?[\])]", "", words).strip() for name, colon, words in lines if colon
    }
    return {name: words for name, words in said.items() if words}


def read_clips(folder: Path, texts: dict[str, str] | None = None) -> Iterator[Clip]:
    """Yield the recordings of a folder, by name; what no one can hear is left out.

    Raises:
        ValueError: If there are none.
    """
    files = sorted(folder.rglob("*.wav"))
    if not files:
        raise ValueError(f"no recordings in {folder}: unpack the Debian packages, dpkg -x PACKAGE.deb FOLDER, into one folder")
    for file in files:
        name = file.relative_to(folder).with_suffix("").as_posix()
        try:
            rate, samples = wavfile.read(file)
        except ValueError:  # µ-law, which SciPy does not read
            continue
        if not name.startswith("silence/"):
            wave = resample_poly(samples.astype(np.float64) / 2**15, RATE, rate).astype(np.float32)
            yield Clip(name, wave, (texts or {}).get(name))


def is_held_out(clip: Clip) -> bool:
    """Return whether an English prompt is for judging: every third sentence, by its name, that fits."""
    words = len((clip.text or "").split())
    return words >= _FEWEST and fits(clip) and zlib.crc32(clip.name.encode()) % _THIRD == 0


def fits(clip: Clip) -> bool:
    """Return whether Whisper hears it whole."""
    return len(clip.wave) + GAP <= HEARD


def held_out(clips: Sequence[Clip]) -> HeldOut:
    """Return a set to be judged on."""
    written = all(clip.text for clip in clips)
    joined = list(join(random.Random(0).sample(clips, len(clips))))
    return HeldOut(features_of(wave for wave, _ in joined), [text for _, text in joined] if written else None)


def cut(clips: Iterable[Clip]) -> Iterator[Clip]:
    """Yield clips in pieces that fit."""
    for clip in clips:
        for start in range(0, len(clip.wave), HEARD - GAP):
            yield Clip(f"{clip.name}/{start}", clip.wave[start : start + HEARD - GAP])


def join(clips: Iterable[Clip], most: Iterator[int] | None = None) -> Iterator[tuple[Waveform, str]]:
    """Yield clips one after the other, half a second of silence between them, in 30 s, and what is said.

    Args:
        clips: None longer than 29.5 s.
        most: Samples to fill of each 30 s; None: all. A first clip may be longer.
    """
    limit, waves, texts = HEARD if most is None else next(most), list[Waveform](), list[str]()
    for clip in clips:
        if waves and sum(map(len, waves)) + len(clip.wave) > limit:
            yield filled(waves), " ".join(texts)
            limit, waves, texts = HEARD if most is None else next(most), [], []
        waves += [clip.wave, np.zeros(GAP, np.float32)]
        texts.append(clip.text or "")
    yield filled(waves), " ".join(texts)


def filled(waves: Sequence[Waveform]) -> Waveform:
    """Return 30 s, silent at the end."""
    wave = np.concatenate(waves)[:HEARD]
    return np.pad(wave, (0, HEARD - len(wave)))


def endless(clips: Sequence[Clip], count: int) -> Iterator[tuple[Waveform, str]]:
    """Yield so many 30 s of shuffled clips, over and over; half of them are full, the others partly silent."""
    draw = random.Random(0)
    pieces = list(cut(clips))

    def shuffled() -> Iterator[Clip]:
        while True:
            yield from draw.sample(pieces, len(pieces))

    def limits() -> Iterator[int]:
        while True:
            yield HEARD if draw.random() < 0.5 else draw.randrange(HEARD)

    for _, heard in zip(range(count), join(shuffled(), limits()), strict=False):
        yield heard


def features_of(waves: Iterable[Waveform]) -> Tensor:
    """Return the input features of 30 s each, ``[N, 80, 3000]``."""
    extract: Any = WhisperFeatureExtractor()
    return torch.cat([extract(wave, sampling_rate=RATE, return_tensors="pt").input_features for wave in waves])


def word_errors(heard: Sequence[str], said: Sequence[str]) -> tuple[list[int], list[int]]:
    """Return the words that are wrong, missing or too many in each text, and those that were said, spelling aside.

    Example:
        >>> word_errors(["press 1, now"], ["Press one"])
        ([1], [2])
    """
    normalize: Any = EnglishTextNormalizer({})
    pairs = [(normalize(ours), normalize(theirs)) for ours, theirs in zip(heard, said, strict=True)]
    words = [len(theirs.split()) for _, theirs in pairs]
    errors = [round(float(word_error_rate(ours, theirs)) * count) for (ours, theirs), count in zip(pairs, words, strict=True)]
    return errors, words
