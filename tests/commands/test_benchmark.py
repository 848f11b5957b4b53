"""The commands from end to end with three rounds a point: files, tables, pictures, and a user's errors."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from flatten_transformer import cli
from flatten_transformer.benchmark.report import Growth, Mean, Point, Report, read_report, to_json
from flatten_transformer.benchmark.table import tables
from flatten_transformer.benchmark.timing import Spread

ROOT = Path(__file__).parents[2]
FAST = ["--device", "cpu", "--budget_s", "1e-9", "--compiled", "false"]


def flatten(capfd: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    status = cli.main(argv)
    out, err = capfd.readouterr()
    return status, out, err


def is_picture(path: Path) -> bool:
    with Image.open(path) as image:
        colours = image.convert("RGB").getcolors(maxcolors=2**24)
        return image.format == "PNG" and min(image.size) > 400 and len(colours or ()) > 20


def test_op_writes_a_report_and_a_picture_of_shapes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shapes = ["--shapes", "1x4x4x16x2,2x3x5x16x2", "--directions", "forward", "--contenders", "ours,released,softmax-math"]
    status, out, err = flatten(capfd, "benchmark", "op", *shapes, *FAST, "--folder", str(tmp_path))
    assert status == 0
    first, second = err.splitlines()
    assert first == "flatten: 1 of 2: 1 × 4·4 tokens, C 16, 2 heads, float32, forward"
    assert second.startswith("flatten: 2 of 2: 2 × 3·5 tokens, C 16, 2 heads, float32, forward; about ")
    report = read_report(tmp_path / "op.json")
    assert {point.shape["tokens"] for point in report.points} == {16, 15}
    assert {point.dtype for point in report.points} == {"float32"}
    assert {mean.contender for mean in report.means} == {"ours", "released", "softmax-math"}
    assert not report.growth
    assert is_picture(tmp_path / "op.png")
    assert "geometric mean" in out
    assert "op.json" in out


def test_op_writes_a_report_and_a_picture_of_a_sweep(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sweep = ["--tokens", "49,3136,3249", "--channels", "8", "--heads", "1", "--tokens_per_batch", "64"]
    wanted = ["--contenders", "ours,released", "--dtypes", "float32"]
    status, out, err = flatten(capfd, "benchmark", "op", *sweep, *wanted, *FAST, "--folder", str(tmp_path))
    assert (status, err.count("\n")) == (0, 6)
    report = read_report(tmp_path / "op.json")
    assert {point.direction for point in report.points} == {"forward", "forward+backward"}
    assert {one.contender for one in report.growth} == {"ours", "released"}
    assert is_picture(tmp_path / "op.png")
    assert "growth" in out


def test_model_writes_a_report_and_a_picture(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = ["--models", "flatten_pvt_v2_b0", "--sizes_px", "64", "--batch", "1", "--directions", "forward"]
    status, out, err = flatten(capfd, "benchmark", "model", *options, *FAST, "--folder", str(tmp_path))
    assert (status, err) == (0, "flatten: 1 of 1: flatten_pvt_v2_b0, 1 image of 64 px, float32, forward\n")
    report = read_report(tmp_path / "model.json")
    assert [point.contender for point in report.points] == ["ours", "released", "softmax"]
    assert is_picture(tmp_path / "model.png")
    assert "flatten_pvt_v2_b0, 1 image of 64 px" in out


def test_the_header_says_where_and_on_what_it_was_measured(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = ["--shapes", "1x4x4x16x2", "--directions", "forward", "--contenders", "ours"]
    assert flatten(capfd, "benchmark", "op", *options, *FAST, "--folder", str(tmp_path))[0] == 0
    header = json.loads((tmp_path / "op.json").read_text())["header"]
    for key in ("device_name", "threads", "torch", "timm", "python", "date", "platform", "command", "copy_gb_per_s", "commit"):
        assert header[key] is not None or key == "commit", key


def test_a_red_check_is_an_error_after_everything_is_written(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flatten_transformer.benchmark.op.TOLERANCES", dict.fromkeys(map(_dtype, ["float32"]), -1.0))
    options = ["--shapes", "1x4x4x16x2", "--directions", "forward", "--contenders", "ours", *FAST, "--folder", str(tmp_path)]
    status, _, err = flatten(capfd, "benchmark", "op", *options)
    assert status == 2
    assert "differ from the released form, so their speed is not reported" in err
    assert read_report(tmp_path / "op.json").failed_checks()
    assert is_picture(tmp_path / "op.png")


def _dtype(name: str) -> object:
    import torch

    return getattr(torch, name)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("op --shapes 16x14x192", "a shape is BATCHxHEIGHTxWIDTHxCHANNELSxHEADS, such as 16x14x14x192x3"),
        ("op --shapes 1x4x4x16x3", "channels must be a multiple of heads, got 16 channels and 3 heads"),
        ("op --tokens 49 --shapes 1x4x4x16x2", "shapes and tokens exclude each other"),
        ("op --tokens 49,many", "tokens must be whole numbers from 1 to 16777216"),
        ("op --tokens 0", "tokens must be whole numbers from 1 to 16777216"),
        ("op --tokens 49 --heads 5", "channels must be a multiple of heads, got 192 channels and 5 heads"),
        ("op --tokens 49 --tokens_per_batch 0", "tokens_per_batch must be above 0, got 0"),
        ("op --dtypes float31", "dtypes holds 'float31': did you mean float32"),
        ("op --dtypes ,", "dtypes is empty: choose some of float32, bfloat16"),
        ("op --directions back", "directions holds 'back': did you mean forward+backward"),
        ("op --contenders our", "contenders holds 'our': did you mean ours"),
        ("op --contenders released-compiled --compiled false", "contenders holds 'released-compiled'"),
        ("op --device tpu", "no device 'tpu': choose auto, cpu or cuda"),
        ("op --device cuda:99", "no device 'cuda:99' here"),
        ("op --budget_s 0", "budget_s must be above 0, got 0"),
        ("op --limit_s -1", "limit_s must be above 0, got -1"),
        ("op --chanels 3", "unrecognized arguments: --chanels 3: did you mean --channels"),
        ("model --models flatten_swim", "models holds 'flatten_swim'"),
        ("model --sizes_px 100", "image sizes must be multiples of 32, such as 224 or 512, got 100"),
        ("model --batch 0", "batch must be above 0, got 0"),
        ("ops", "no command 'benchmark ops': did you mean benchmark op"),
        ("--quick true", "flatten benchmark needs one more word: op, model, data, loop"),
    ],
)
def test_a_users_error_is_one_line_that_says_what_to_do(command: str, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    status, out, err = flatten(capfd, "benchmark", *command.split())
    assert (status, out) == (2, "")
    assert err.startswith("flatten: error: ")
    assert err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize("argv", [(), ("--help",)])
def test_the_group_alone_lists_its_commands(argv: tuple[str, ...], capfd: pytest.CaptureFixture[str]) -> None:
    status, out, err = flatten(capfd, "benchmark", *argv)
    assert (status, err) == (0, "")
    assert "flatten benchmark op " in out
    assert "flatten benchmark model " in out
    assert "flatten fit" not in out.replace("flatten fit --config", "")


def test_a_report_survives_its_file(tmp_path: Path) -> None:
    shape = {"batch": 2, "height": 3, "width": 3, "channels": 8, "heads": 2, "tokens": 9}
    timed = Point(
        "attention", "ours", shape, "float32", "forward", 2.0, 1.0, 3.0, 7, 0.5, 0.1, 1e-7, {"released": Spread(0.1, 0.2, 0.3)}
    )
    untimed = Point("attention", "softmax-cudnn", shape, "float32", "forward", reason="no kernel")
    growth = (Growth("ours", "float32", "forward", 9, 81, 1.01, None),)
    means = (Mean("ours", "float32", "forward", 1, 5.0),)
    report = Report({"device": "cpu", "threads": 2, "commit": None}, [timed, untimed], growth, means)
    (tmp_path / "report.json").write_text(json.dumps({"header": report.header, **to_json(report)}))
    assert read_report(tmp_path / "report.json") == report
    assert timed.speedup() == 5.0
    assert timed.per_sample(timed.median_us) == 1.0


def test_the_table_marks_what_loses_and_says_who_has_no_time_and_why() -> None:
    from rich.console import Console

    shape = {"batch": 2, "height": 3, "width": 3, "channels": 8, "heads": 2, "tokens": 9}

    def point(name: str, time_us: float) -> Point:
        ratio = Spread(time_us / 4, time_us / 4, time_us / 4)
        return Point("attention", name, shape, "float32", "forward", time_us, time_us, time_us, time_ratios={"released": ratio})

    points = [point("ours", 2.0), point("ours-portable", 0.5), point("released", 4.0), point("softmax-flash", 1.0)]
    points.append(Point("attention", "softmax-cudnn", shape, "float32", "forward", reason="no such kernel"))
    console = Console(width=110, record=True, file=io.StringIO())
    console.print(*tables(Report({}, points)))
    lines = {line.split()[0]: line for line in console.export_text().splitlines() if line.split()}
    assert "2.00 ▼" in lines["ours"]
    assert "8.00" in lines["ours-portable"]
    assert "▼" not in lines["ours-portable"] + lines["released"] + lines["softmax-flash"]
    assert "not timed: softmax-cudnn: no such kernel" in lines["not"]


def test_the_gpu_script_runs_and_needs_no_extra_but_matplotlib(tmp_path: Path) -> None:
    blocked = "import sys; sys.modules.update(dict.fromkeys(['rich', 'lightning', 'jsonargparse', 'sklearn']));"
    options = "--device cpu --dtype float32 --eager --budget_s 1e-9 --tokens 9 16 --tokens_per_batch 32 --heads 1 --minutes 1"
    argv = ["gpu.py", *options.split(), "--models", "--folder", str(tmp_path)]
    script = (
        f"{blocked} sys.argv = {argv}; import runpy; runpy.run_path({str(ROOT / 'benchmarks/gpu.py')!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (written,) = tmp_path.glob("*.json")
    assert {point.shape["tokens"] for point in read_report(written).points} == {9, 16}
    assert is_picture(written.with_suffix(".png"))
    assert "softmax-flash" in done.stdout
