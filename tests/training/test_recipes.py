import difflib
import json
import re
import shutil
from pathlib import Path

import pytest
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from flatten_transformer.tasks.classification.model import build_model
from flatten_transformer.tasks.classification.preprocessing import Preprocessing
from flatten_transformer.tasks.model_file import ModelInfo, save_model
from flatten_transformer.training import recipes
from flatten_transformer.training.arguments import prepare
from flatten_transformer.training.cli import TrainingCLI
from flatten_transformer.training.recipes import find_recipe, full_name, recipe_names, say_full_name
from tests.box_folders import write_yolo
from tests.images import write_packed
from tests.scenes import few_scenes


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (8, 8)).save(tmp_path / "images" / name / f"{number}.png")
    return tmp_path / "images"


# test_imagenet_recipes.py, test_coco_recipes.py and test_ade20k_recipes.py look at the others
SMALL_BOXES = ["--data.sizes", "[64]", "--data.max_size", "128"]
SMALL_BOXES += ["--model.model_args.min_size", "64", "--model.model_args.max_size", "128"]
RUNNABLE = [name for name in recipe_names() if not name.startswith(("imagenet1k/", "coco/", "ade20k/"))]


@pytest.mark.parametrize("name", RUNNABLE)
def test_every_recipe_can_be_run(
    name: str, image_folder: Path, mask_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "runs"
    own = {
        "finetune": ["--data.root", str(image_folder), "--data.num_workers", "0"],
        "detect": ["--data.root", str(write_yolo(tmp_path / "boxes", {"": 6})), *SMALL_BOXES, "--data.num_workers", "0"],
        "segment": ["--data.root", str(mask_folder), "--data.num_workers", "0", "--data.crop_size", "64"],
        "scenes": ["--data.root", str(few_scenes(tmp_path / "scenes", monkeypatch))],
        "fashion_mnist": ["--data.root", str(write_packed(tmp_path / "fashion", train=40, test=10)), "--data.val_share", "0.5"],
    }
    if name.startswith("linearize/"):
        own["linearize"] = _teacher(tmp_path, ["--data.root", str(image_folder), "--data.num_workers", "0"], name.endswith("3"))
    options = ["--trainer.default_root_dir", str(runs), "--trainer.fast_dev_run", "true", *own.get(name.split("/")[0], [])]
    cli = TrainingCLI("fit", ["--config", name, *options])
    cli.trainer.fit(cli.model, cli.datamodule)
    assert cli.model.num_classes == cli.datamodule.num_classes
    size = getattr(cli.datamodule.preprocessing, "img_size", None)  # of detectors and segmenters there is no one size
    assert cli.model.model_args.get("img_size", size) == size
    assert not [path for path in runs.rglob("*") if path.is_file()]


def _teacher(folder: Path, images: list[str], labelled: bool) -> list[str]:
    """Return the options of a small teacher, of two classes."""
    sizes = {"img_size": 32, "patch_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2}
    model, file = build_model("vit_small_patch16_224", sizes, 2, 3), folder / "teacher.safetensors"
    info = ModelInfo("vit_small_patch16_224", sizes, ("a", "b"), Preprocessing(32, 3, (0.5,) * 3, (0.5,) * 3))
    save_model(file, model, info)
    small = [*("--model.model_args", json.dumps(sizes)), *("--data.img_size", "32"), *images, "--model.pretrained", str(file)]
    return small if labelled else [*small, "--data.classes", "2"]


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_opens_with_command_hardware_time_and_result(name: str) -> None:
    head = [line for line in find_recipe(name).read_text("utf-8").splitlines()[:8] if line.startswith("#")]
    assert any(f"flatten fit --config {name}" in line for line in head)
    assert all(any(word in line for line in head) for word in ("hardware:", "time:", "result:"))


@pytest.mark.parametrize("folder", ["digits", "fashion_mnist"])
def test_the_twins_differ_in_their_attention_alone(folder: str) -> None:
    first, second = (
        [line for line in find_recipe(f"{folder}/{name}_deit").read_text("utf-8").splitlines() if not line.startswith("#")]
        for name in ("flatten", "softmax")
    )
    changes = [line for line in difflib.ndiff(first, second) if line[:1] in "-+"]
    assert [change.replace("attn_types: L", "attn_types: S")[1:] for change in changes] == [changes[1][1:]] * 2


@pytest.mark.parametrize("given", ["digits/flatten_deit", "digits/flatten_deit.yaml", "recipes/digits/flatten_deit.yaml"])
def test_a_recipe_is_found_by_name_from_anywhere(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_recipe(given).is_file()


def test_the_beginning_of_a_name_is_enough_where_it_says_which() -> None:
    assert find_recipe("imagenet1k/flatten_swin_tiny").stem == "flatten_swin_tiny_patch4_224"
    assert find_recipe("imagenet1k/flatten_pvt_v2_b1").stem == "flatten_pvt_v2_b1"
    with pytest.raises(FileNotFoundError, match=r"2 recipes fit 'imagenet1k/flatten_swin_base': choose one of .*_224, .*_384"):
        find_recipe("imagenet1k/flatten_swin_base")


def test_a_recipe_needs_no_folder_where_its_name_says_which() -> None:
    assert full_name("study") == "fashion_mnist/study"
    assert full_name("upernet_flatten_swin_tiny") == "ade20k/upernet_flatten_swin_tiny_160k"
    with pytest.raises(
        FileNotFoundError, match=r"2 recipes fit 'softmax_deit': choose one of digits/.*, fashion_mnist/softmax_deit"
    ):
        full_name("softmax_deit")


@pytest.mark.parametrize(
    ("given", "meant"),
    [("finetun", "finetune"), ("digits/flat", "digits/flatten_deit"), ("digits/flatten_deit_", "digits/flatten_deit")],
)
def test_a_part_of_a_word_is_no_name(given: str, meant: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"no recipe and no file '{given}': did you mean {meant}"):
        find_recipe(given)


def test_many_recipes_of_one_beginning_are_not_listed_on_a_line() -> None:
    with pytest.raises(FileNotFoundError, match=r"^\d\d recipes fit 'imagenet1k': `flatten recipes imagenet1k` lists them$"):
        find_recipe("imagenet1k")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("study", "study is the recipe fashion_mnist/study\n"),
        ("recipes/digits/flatten_deit.yaml", ""),
        ("digits/flatten_deit", ""),
        ("own.yaml", ""),
    ],
)
def test_which_recipe_a_short_name_means_is_said_once(
    given: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text("model: {}")
    path = prepare("fit", ["--seed_everything", "0", f"--config={given}"], say_full_name)[-1]
    assert Path(path).is_file()
    assert capsys.readouterr().err == said


def test_only_the_first_of_many_processes_says_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    cli = TrainingCLI("fit", ["--config", "digits/flatten", "--seed", "0", "--trainer.fast_dev_run", "true"])
    assert cli.place.recipe.stem == "flatten_deit"
    assert "digits/flatten is" not in capsys.readouterr().err


def test_a_whole_name_is_meant_even_if_others_begin_like_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "recipe_folder", lambda: tmp_path)
    for name in ("vit", "vit_large"):
        (tmp_path / f"{name}.yaml").write_text("model: {}")
    assert find_recipe("vit").stem == "vit"


def test_a_file_of_ones_own_comes_before_a_recipe_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = Path("digits/flatten_deit.yaml")
    own.parent.mkdir()
    own.write_text("model: {}")
    assert find_recipe("digits/flatten_deit.yaml") == own


def test_a_file_in_the_working_directory_takes_no_recipes_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("digits").mkdir()
    Path("digits/flatten_deit").write_text("model: {}")
    assert find_recipe("digits/flatten_deit") == recipes.recipe_folder() / "digits" / "flatten_deit.yaml"
    assert find_recipe("./digits/flatten_deit") == Path("digits/flatten_deit")


def test_recipes_are_found_inside_an_installed_package_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "flatten_transformer"
    shutil.copytree(recipes.recipe_folder(), package / "recipes")
    monkeypatch.setattr(recipes, "__file__", str(package / "tasks" / "recipes.py"))
    assert find_recipe("digits/flatten_deit") == package / "recipes" / "digits" / "flatten_deit.yaml"


@pytest.mark.parametrize(
    ("content", "message"),
    [("model: [", "cannot be read as YAML"), ("just words", "must hold options by name"), ("", "must hold options by name")],
)
def test_a_file_that_is_no_recipe_is_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(content)
    with pytest.raises(ValueError, match=rf"bad\.yaml is not a recipe: .*{message}"):
        find_recipe(str(tmp_path / "bad.yaml"))


def test_fine_tuning_changes_early_layers_less(image_folder: Path) -> None:
    options = ["--data.root", str(image_folder), "--data.num_workers", "0", "--trainer.fast_dev_run", "true"]
    cli = TrainingCLI("fit", ["--config", "finetune", *options])
    shares = [group["lr_scale"] for group in cli.model.optim.optimizer(cli.model.model, 32).param_groups]
    assert max(shares) == 1
    assert min(shares) < 0.1


def test_a_missing_recipe_is_answered_with_its_likes() -> None:
    with pytest.raises(FileNotFoundError, match="no recipe and no file 'digits/flaten_deit': did you mean digits/flatten_deit"):
        find_recipe("digits/flaten_deit")


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("trainer: null", "trainer must hold options by name"),
        ("trainer: 5", "trainer must hold options by name"),
        ("data: {augmentation: null}", "data.augmentation must hold options by name"),
        ("data: {batch_size: null}", '"data.batch_size": Expected int. Got value: None'),
        ("data: {augmentation: {scale: null}}", '"data.augmentation.scale": Expected tuple. Got value: None'),
        ("model: {model_args: {num_heads: 5}}", "num_heads"),
    ],
)
def test_what_a_recipe_cannot_mean_is_refused(recipe: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "odd.yaml").write_text(recipe)
    options = ["--trainer.fast_dev_run", "true", "--trainer.default_root_dir", str(tmp_path)]
    with pytest.raises(ValueError, match=re.escape(said)):
        TrainingCLI("fit", ["--config", "digits/flatten_deit", "--config", str(tmp_path / "odd.yaml"), *options])
