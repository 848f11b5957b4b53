"""The script that makes Whisper's encoder linear: what it reads, learns, keeps and tells; a tiny Whisper, made-up speech."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.io import wavfile
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from transformers import WhisperConfig, WhisperForConditionalGeneration
from transformers.models.whisper.modeling_whisper import sinusoids

from benchmarks.whisper import report, run, speech, weights
from flatten_transformer.linearize import LinearMixer
from flatten_transformer.linearize.errors import compared
from flatten_transformer.ops import reference

TOKENS = 1500


def tiny() -> Any:
    torch.manual_seed(0)
    sizes = {f"{part}_{what}": 2 for part in ("encoder", "decoder") for what in ("layers", "attention_heads")}
    hidden = {"encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
    model = WhisperForConditionalGeneration(
        WhisperConfig(vocab_size=51864, d_model=8, max_target_positions=32, **sizes, **hidden)
    )
    for name, value in model.named_parameters():
        nn.init.normal_(value, std=1.0 if "v_proj" in name or "out_proj" in name else 0.3)
    return model.eval()


# weights ---------------------------------------------------------------------------------------------------------------------


def written(model: Any) -> bytes:
    """Return the file that CTranslate2 would write, joined projections, zero biases of keys and all, in half precision."""
    state = {name.removeprefix("model."): value for name, value in model.state_dict().items()}
    variables: dict[str, Tensor] = {
        "encoder/num_heads": torch.tensor(2, dtype=torch.int16),
        "encoder/pre_norm": torch.tensor(1, dtype=torch.int8),
    }
    for side in ("encoder", "decoder"):
        variables[f"{side}/position_encodings/encodings"] = state[f"{side}.embed_positions.weight"]
        norms = {"layer_norm": f"{side}.layer_norm"}
        for number in range(2):
            old, new = f"{side}.layers.{number}", f"{side}/layer_{number}"
            hosts = {"self_attention": "self_attn", **({"attention": "encoder_attn"} if side == "decoder" else {})}
            for theirs, ours in hosts.items():
                norms[f"layer_{number}/{theirs}/layer_norm"] = f"{old}.{ours}_layer_norm"
                for place, letters in enumerate(("qkv", "o") if theirs == "self_attention" else ("q", "kv", "o")):
                    for part in ("weight", "bias"):
                        pieces = [projection(state, f"{old}.{ours}", letter, part) for letter in letters]
                        variables[f"{new}/{theirs}/linear_{place}/{part}"] = torch.cat(pieces)
            norms[f"layer_{number}/ffn/layer_norm"] = f"{old}.final_layer_norm"
            for place, part in ((0, "weight"), (0, "bias"), (1, "weight"), (1, "bias")):
                variables[f"{new}/ffn/linear_{place}/{part}"] = state[f"{old}.fc{place + 1}.{part}"]
        for theirs, ours in norms.items():
            variables[f"{side}/{theirs}/gamma"], variables[f"{side}/{theirs}/beta"] = (
                state[f"{ours}.weight"],
                state[f"{ours}.bias"],
            )
    for name in ("conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"):
        variables[f"encoder/{name.replace('.', '/')}"] = state[f"encoder.{name}"]
    variables["decoder/embeddings/weight"] = state["decoder.embed_tokens.weight"]
    content = [variable(name, value) for name, value in variables.items()]
    return (
        struct.pack("<I", 6)
        + text("WhisperSpec")
        + struct.pack("<II", 3, len(content))
        + b"".join(content)
        + struct.pack("<I", 0)
    )


def projection(state: dict[str, Tensor], attention: str, letter: str, part: str) -> Tensor:
    name = f"{attention}.{'out' if letter == 'o' else letter}_proj.{part}"
    return state[name] if name in state else torch.zeros(8)


def text(words: str) -> bytes:
    return struct.pack("<H", len(words) + 1) + words.encode() + b"\0"


def variable(name: str, value: Tensor) -> bytes:
    kind, value = (4, value.half()) if value.is_floating_point() else ({torch.int16: 2, torch.int8: 1}[value.dtype], value)
    content = value.numpy().tobytes()
    return text(name) + struct.pack(f"<B{value.ndim}IBI", value.ndim, *value.shape, kind, len(content)) + content


def test_a_file_of_ctranslate2_is_read_as_the_model_that_it_was_written_from(tmp_path: Path) -> None:
    model, file = tiny().half().float(), tmp_path / "model.bin"
    file.write_bytes(written(model))
    read = weights.load_whisper(file)
    for name, value in model.state_dict().items():
        assert torch.equal(read.state_dict()[name], value), name
    assert read.config.encoder_attention_heads == 2
    inputs = {"input_features": torch.randn(1, 80, 3000), "decoder_input_ids": torch.tensor([[1, 2, 3]])}
    with torch.no_grad():
        assert torch.equal(read(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "ends early, or is none of CTranslate2"),
        (struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, 1) + text("a") + b"\1", "ends early"),
        (
            struct.pack("<I", 6) + text("TransformerSpec") + struct.pack("<I", 3),
            "'TransformerSpec', version 6: give the model.bin",
        ),
    ],
)
def test_another_file_is_refused_in_a_line(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        weights.read_variables(content)


# speech ----------------------------------------------------------------------------------------------------------------------


def write_speech(folder: Path) -> Path:
    """Write the layout of the Debian packages; return the file of transcripts."""
    noise, said = np.random.default_rng(0), []
    for place in (speech._ENGLISH, speech._FRENCH, speech._ITALIAN, speech._NOVEL, speech._RADIO):
        (folder / place).mkdir(parents=True)
        for number in range(12):
            samples = noise.integers(-9000, 9000, 8000 * (1 + number % 4)).astype(np.int16)
            wavfile.write(folder / place / f"clip-{number}.wav", 8000, samples)
            if place == speech._ENGLISH:
                said.append(f"clip-{number}: please press number {number}" if number else "clip-0: zero")
    lines = [f"<s> a sentence of number {number} </s> (clip-{number})" for number in range(12)]
    (folder / speech._NOVEL / "transcription").write_text("\n".join(lines))
    transcripts = folder / "core-sounds-en.txt"
    transcripts.write_text("; English\n" + "\n".join(said))
    return transcripts


def test_held_out_sentences_are_not_learned_from_and_stand_beside_what_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[np.ndarray[Any, Any]] = []

    def remember(waves: Iterable[speech.Waveform]) -> Tensor:
        heard.append(np.stack(list(waves)))
        return torch.empty(0)

    monkeypatch.setattr(speech, "features_of", remember)
    recordings = speech.read_speech(tmp_path, write_speech(tmp_path), 3)
    training, prompts = heard[0], heard[1]
    assert training.shape == (3, speech.HEARD)
    clips = list(
        speech.read_clips(tmp_path / speech._ENGLISH, speech.read_transcripts((tmp_path / "core-sounds-en.txt").read_text()))
    )
    out = [clip for clip in clips if speech.is_held_out(clip)]
    assert 0 < len(out) < 11
    said = " ".join(recordings.held_out["prompts"].texts or [])
    assert "zero" not in said  # no sentence
    for clip in clips:
        start = clip.wave[2000:2400]  # noise, which nothing else is like
        assert contains(prompts, start) == (clip in out)
        assert contains(training, start) <= (clip not in out)
    for clip in out:
        assert str(clip.text) in said
    assert recordings.held_out["radio"].texts is None
    assert len(recordings.held_out["novel"].texts or []) == 2  # 30 seconds of sound, half a second between clips


def contains(waves: np.ndarray[Any, Any], piece: np.ndarray[Any, Any]) -> bool:
    starts = np.flatnonzero(waves.ravel()[: -len(piece)] == piece[0])
    return any(np.array_equal(waves.ravel()[start : start + len(piece)], piece) for start in starts)


def test_a_folder_without_speech_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no recordings in .*: unpack the Debian packages"):
        list(speech.read_clips(tmp_path))


def test_wrong_missing_and_superfluous_words_are_counted_spelling_aside() -> None:
    heard = ["Press one, now!", "", "the colour is green and blue"]
    assert speech.word_errors(heard, ["press 1", "two words", "The color is red"]) == ([1, 2, 4], [2, 2, 4])


# students --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def teacher(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(run, "BUDGET", run.Budget(recordings=2, steps=(2, 3)))
    monkeypatch.setattr(run, "_LONGEST", 2)
    whisper, features = tiny().requires_grad_(False), torch.randn(2, 80, 2 * TOKENS)
    sets = {"prompts": speech.HeldOut(features + 1, ["a b", "c"]), "radio": speech.HeldOut(features[:1], None)}
    words = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    targets = [whisper.model.encoder(one).last_hidden_state for one in features.split(1)]
    return run.Teacher(whisper, words, speech.Speech(features, sets), targets)


@pytest.mark.parametrize("name", ["focused", "focused, keys centred"])
def test_an_untrained_student_is_the_literal_formula_on_the_teachers_queries_keys_and_values(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads: list[tuple[Tensor, Tensor, Tensor]] = []
    softmax = F.scaled_dot_product_attention

    def spy(q: Tensor, k: Tensor, v: Tensor, *args: Any, **options: Any) -> Tensor:
        heads.append((q, k, v))
        return softmax(q, k, v, *args, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    encoder = run.at_length(tiny().double().model.encoder, 20).double()
    student = run.make_student(encoder, name)
    mixers = [part for part in student.modules() if isinstance(part, LinearMixer)]
    came: list[Tensor] = []
    for mixer in mixers:
        mixer.register_forward_hook(lambda module, args, output: came.append(output))
    with compared(encoder, student, lambda *_: None):
        encoder(torch.randn(1, 80, 40, dtype=torch.float64))
    assert len(came) == len(heads) == 2
    for (q, k, v), output, mixer in zip(heads, came, mixers, strict=True):
        k = k - k.mean(2, keepdim=True) if name == "focused, keys centred" else k
        q = q * q.shape[3] ** 0.5  # Whisper divides its queries before
        wanted = reference.focused_linear_attention(q, k, v, temperature=mixer.attention.temperature())
        torch.testing.assert_close(output, wanted.transpose(1, 2).flatten(2), rtol=1e-9, atol=1e-10)


def test_with_all_blocks_kept_the_encoder_is_the_teachers_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(run.VARIANTS, "all", {"keep": [0, 1]})
    encoder, features = tiny().model.encoder, torch.randn(1, 80, 2 * TOKENS)
    assert torch.equal(run.make_student(encoder, "all")(features).last_hidden_state, encoder(features).last_hidden_state)


def test_the_first_stage_changes_linear_attentions_alone_and_the_second_all_but_positions(
    teacher: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fingerprint(teacher.whisper)
    student = run.make_student(teacher.encoder, "focused")
    for stage, loss in enumerate((run.attention_loss, run.output_loss)):
        old = {name: value.clone() for name, value in student.state_dict().items()}
        run.learn(student, partial(loss, teacher, student), stage)
        changed = {name for name, value in student.state_dict().items() if not torch.equal(value, old[name])}
        assert changed
        assert all(".self_attn." in name for name in changed) == (stage == 0)
    assert {"conv1.weight", "layers.1.fc2.bias", "layer_norm.weight"} <= changed
    assert "embed_positions.weight" not in changed
    assert fingerprint(teacher.whisper) == before


def fingerprint(model: nn.Module) -> str:
    return hashlib.sha256(b"".join(value.numpy().tobytes() for value in model.state_dict().values())).hexdigest()


def test_training_brings_a_student_nearer_to_its_teacher(teacher: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "BUDGET", run.Budget(recordings=2, steps=(15, 15)))
    result = run.train_one("focused, 1 softmax", teacher)
    assert len(result["softmax"]) == 1
    assert list(result["stages"]) == ["untrained", "stage 1", "stage 2"]
    untrained, first, second = (stage["radio"] for stage in result["stages"].values())  # it has learned from that one
    (name,) = untrained["attentions"]
    assert first["attentions"][name] < untrained["attentions"][name]
    assert second["features"] < first["features"]
    assert result["stages"]["untrained"]["prompts"]["words"] == [2, 1]
    assert second["errors"] == []


def test_an_encoder_of_its_own_length_is_itself_and_all_lengths_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = tiny().model.encoder
    encoder.embed_positions = nn.Embedding.from_pretrained(sinusoids(TOKENS, 8))
    features = torch.randn(1, 80, 2 * TOKENS)
    with torch.no_grad():
        assert torch.equal(run.at_length(encoder, TOKENS)(features).last_hidden_state, encoder(features).last_hidden_state)
    monkeypatch.setattr(run, "TIMED", ("focused", "focused, 1 softmax"))
    times = run.measure_times(encoder, [20, 40], budget_s=0)
    assert encoder.config.max_source_positions == TOKENS
    assert list(times["tokens"]) == ["20", "40"]
    assert list(times["tokens"]["20"]["ms"]) == ["softmax", "focused", "focused, 1 softmax"]
    assert min(times["tokens"]["40"]["ratio"]["focused"]) > 0


# what is kept and told -------------------------------------------------------------------------------------------------------


def judged(features: float, prompts: list[int], **attentions: float) -> dict[str, Any]:
    sets = {"prompts": (prompts, [50, 50]), "novel": ([2], [71]), "radio": ([], [])}
    return {
        name: {"attentions": attentions, "features": features, "errors": errors, "words": words}
        for name, (errors, words) in sets.items()
    }


def result(name: str, *, wrong: int, softmax: list[int]) -> dict[str, Any]:
    blocks = {f"layers.{number}.self_attn": 0.25 for number in range(2) if number not in softmax}
    stages = {
        stage: judged(0.5, [number, number], **blocks) for stage, number in zip(report.STAGES, (50, 20, wrong), strict=True)
    }
    plan = {"linearize": {}, "budget": {"recordings": 150, "steps": [80, 240]}}
    return {
        "variant": name,
        "softmax": softmax,
        "stages": stages,
        "teacher": judged(0.0, [1, 1]),
        "training_s": [60, 120],
        "origin": plan,
    }


TIMES = {
    "header": {"threads": 1, "device_name": "a processor", "torch": "2.0"},
    "tokens": {
        "375": {"rounds": 5, "ms": {"softmax": [9, 10, 11], "focused": [14, 15, 16]}, "ratio": {"focused": [1.4, 1.5, 1.6]}},
        "1500": {
            "rounds": 4,
            "ms": {"softmax": [90, 100, 110], "focused": [49, 50, 51]},
            "ratio": {"focused": [0.45, 0.5, 0.55]},
        },
    },
}


def test_the_page_and_the_picture_tell_what_the_results_say(tmp_path: Path) -> None:
    results = [result("focused", wrong=11, softmax=[]), result("focused, 1 softmax", wrong=1, softmax=[1])]
    page = report.page(results, TIMES)
    assert "150 recordings of 30 s" in page
    assert "at most 3 minutes of one thread a student" in page
    assert "one of the 100 words of the prompts is 1 %, one of the 71 words of the novel is 1.4 %" in page
    assert "| teacher | all | | | | | 2 (2.0 %) | 2 (2.8 %) |" in page
    assert "| focused | none | untrained | 0.5 | 0.5 | 0.5 | 100 (100.0 %) | 2 (2.8 %) |" in page
    assert "|  |  | stage 2 | 0.5 | 0.5 | 0.5 | 22 (22.0 %) | 2 (2.8 %) |" in page
    assert "- focused: +20.0 points (+20.0 to +20.0), **worse**" in page
    assert "- focused, 1 softmax: +0.0 points (+0.0 to +0.0), may be chance" in page
    assert "| focused, 1 softmax | untrained | 0.25 | softmax |" in page
    assert "| 1,500 | 4 | 100 ms | **0.50** (0.45-0.55) |" in page
    assert "- focused: faster from 1,500 tokens on" in page
    assert "Time against length" not in report.page(results, None)
    report.draw(results, TIMES, tmp_path / "whisper.png")
    assert (tmp_path / "whisper.png").stat().st_size > 5000


def test_a_run_that_is_broken_off_goes_on_with_what_has_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "HERE", tmp_path)
    monkeypatch.setattr(run, "judge", lambda teacher, encoder: {})
    monkeypatch.setattr(run, "digest", lambda speech: "abc")
    trained: list[str] = []
    nothing: Any = None

    def train_one(name: str, teacher: Any) -> dict[str, Any]:
        if name == "relu" and not trained.count("stop"):
            trained.append("stop")
            raise KeyboardInterrupt
        trained.append(name)
        return {}

    monkeypatch.setattr(run, "train_one", train_one)
    teacher: Any = run.Teacher(tiny(), nothing, nothing, [])
    names = ["focused", "relu"]
    with pytest.raises(KeyboardInterrupt, match=r"every finished student is in results/; the same command goes on"):
        run.train_missing(names, lambda: teacher)
    assert [file.name for file in (tmp_path / "results").iterdir()] == ["focused.json"]
    run.train_missing(names, lambda: teacher)
    assert trained == ["focused", "stop", "relu"]
    assert "1 of 2 students are in" in capsys.readouterr().err
    run.train_missing(names, lambda: pytest.fail("nothing is left"))
    monkeypatch.setattr(run, "BUDGET", run.Budget(steps=(1, 1)))
    with pytest.raises(SystemExit, match=r"focused\.json is of other options of 'focused', or of another budget: move it away"):
        run.train_missing(names, lambda: teacher)
