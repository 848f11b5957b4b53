"""`--import`: attentions, data sets and tasks of one's own, from the command line."""

from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]  # ships no annotations
from PIL import Image

from flatten_transformer.cli import main
from flatten_transformer.tasks import registry

ATTENTION = """
import flatten_transformer.ops as ops
from flatten_transformer import GridAttention, register_attention

@register_attention("{name}")
class Mine(GridAttention):
    def mix(self, q, k, v, layout):
        return ops.focused_linear_attention(q, k, v, layout.attn_mask, focusing_factor=1)
"""
SIZES = "{{img_size: 16, patch_size: 8, embed_dim: 16, depth: 1, num_heads: 2, attention: {name}}}"
QUICK = ["--img_size", "16", "--epochs", "1", "--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "1"]
QUICK += ["--trainer.enable_progress_bar", "false"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_an_attention_of_ones_own_is_trained_stored_and_used(capfd: pytest.CaptureFixture[str]) -> None:
    Path("own_attention_file.py").write_text(ATTENTION.format(name="own-by-file"))
    model = ["--model.model_args", SIZES.format(name="own-by-file")]
    assert main(["fit", "--config", "digits/flatten_deit", "--import", "own_attention_file.py", *model, *QUICK]) == 0
    run = Path("runs/digits/flatten_deit/version_0")
    assert yaml.safe_load((run / "config.yaml").read_text())["import"] == ["own_attention_file.py"]
    Image.new("L", (16, 16)).save("image.png")
    capfd.readouterr()
    predict = ["predict", "image.png", "--checkpoint", str(run / "checkpoints" / "model.safetensors")]
    assert main([*predict, "--import", "own_attention_file"]) == 0  # by its name too
    assert "%" in capfd.readouterr().out


def test_an_attention_of_ones_own_without_a_matrix_is_not_analyzed_and_says_what_it_lacks(
    capfd: pytest.CaptureFixture[str],
) -> None:
    Path("own_without_matrix.py").write_text(ATTENTION.format(name="own-without-matrix"))
    Image.new("L", (16, 16)).save("image.png")
    model = ["--model", "flatten_deit_tiny_patch16_224", "--img_size", "32", "--attention", "own-without-matrix"]
    assert main(["analyze", "image.png", *model, "--import", "own_without_matrix.py"]) == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "error" in line]
    assert line.startswith("flatten: error: Mine shows no matrix: write weights(self, q, k, v, layout)")


def test_what_is_not_imported_is_named_with_its_cure(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", "digits/flatten_deit", "--model.model_args", SIZES.format(name="nobodys"), *QUICK]) == 2
    assert "no attention 'nobodys'" in capfd.readouterr().err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("no_such_module", "there is no module 'no_such_module': install it or correct the name"),
        ("no_such_file.py", "there is no module 'no_such_file.py': install it or correct the name"),
        ("broken_module_here.py", "broken_module_here.py cannot be imported: ZeroDivisionError: division by zero (line 2)"),
        ("incomplete_here", "incomplete_here cannot be imported: ModuleNotFoundError: No module named 'nothing_of_this_name'"),
    ],
)
def test_a_module_that_fails_is_one_line(option: str, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    Path("broken_module_here.py").write_text("x = 1\nx / 0\n")
    Path("incomplete_here.py").write_text("import nothing_of_this_name\n")
    for command in (["fit", "--config", "digits/flatten_deit"], ["predict", "image.png", "--checkpoint", "model.safetensors"]):
        assert main([*command, "--import", option]) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert message in line


def test_a_recipe_may_name_installed_modules_and_nothing_beside_it(capfd: pytest.CaptureFixture[str]) -> None:
    Path("beside_the_recipe.py").write_text("open('ran', 'w').close()\n")
    Path("foreign.yaml").write_text("import: [beside_the_recipe]\nmodel: {name: flatten_deit_tiny_patch16_224}\n")
    assert main(["fit", "--config", "foreign.yaml"]) == 2
    assert "is not imported unasked: if you trust it, add --import beside_the_recipe" in capfd.readouterr().err
    assert not Path("ran").exists()
    Path("foreign.yaml").write_text("import: [json]\nseed_everything: 0\nmodel: {name: resnet81}\n")
    assert main(["fit", "--config", "foreign.yaml"]) == 2
    assert "timm knows no model 'resnet81'" in capfd.readouterr().err


def test_a_task_of_ones_own_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_own", {})
    spec = registry.task_spec("classify")
    registry.register_task("look", spec)
    assert registry.task_spec("look") is spec
    registry.register_task("look", spec)  # a module may be imported twice
    with pytest.raises(ValueError, match="there is a task 'detect' already"):
        registry.register_task("detect", spec)
    with pytest.raises(ValueError, match="no task 'lok': did you mean look"):
        registry.check_task("lok")


def test_a_module_and_its_file_are_one(capfd: pytest.CaptureFixture[str]) -> None:
    Path("one_module_two_names.py").write_text("")
    Path("stored.yaml").write_text("import: [one_module_two_names.py]\nseed_everything: 0\nmodel: {name: resnet81}\n")
    assert main(["fit", "--config", "stored.yaml", "--import", "one_module_two_names"]) == 2
    assert "timm knows no model 'resnet81'" in capfd.readouterr().err
    assert main(["fit", "--config", "stored.yaml", "--import"]) == 2
    assert "--import needs the name of a module, or of a .py file" in capfd.readouterr().err
