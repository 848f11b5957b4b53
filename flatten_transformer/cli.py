"""The command ``flatten``: parse arguments, call the library, report a user's error on one line."""

from __future__ import annotations

import importlib
import inspect
import io
import os
import select
import signal
import sys
from collections.abc import Callable, Sequence
from pkgutil import resolve_name
from typing import Any, get_args, get_origin, get_type_hints

from flatten_transformer import commands
from flatten_transformer.training.front import answer
from flatten_transformer.utils.import_path import take_imports, without_working_directory
from flatten_transformer.utils.printable import printable
from flatten_transformer.utils.stopping import StoppedError, UnavailableError, UnfinishedError
from flatten_transformer.utils.suggest import did_you_mean
from flatten_transformer.version import __version__

TRAINING = {  # by recipes; options are those of the task, the data and Lightning's Trainer
    "fit": "train a model by a recipe",
    "validate": "judge a checkpoint on the validation images",
    "test": "judge a checkpoint on the test images",
}
COMMANDS = {  # typed functions in commands/: their parameters are the options, their docstrings the help
    "recipes": "list the recipes, or show one",
    "runs": "list the runs, or compare some",
    "predict": "say what a trained model sees in image files",
    "analyze": "show how attention looks at an image: ranks, sharpness, pictures",
    "linearize": "turn a pretrained softmax Transformer into a linear one",
    "models": "list the models, what they cost and what is published",
    "convert-checkpoint": "turn a pickled checkpoint into safetensors",
    "benchmark op": "race the attention against the released form and softmax",
    "benchmark model": "race models against their softmax namesakes",
    "benchmark data": "measure how fast a recipe's images are read and augmented",
    "benchmark loop": "measure what the training loop costs beside plain PyTorch",
    "make-scenes": "write the scenes of the dense demo into a folder",
    "demo": "train, compare, explain and use a small model on digits",
    "demo-dense": "find digits on photographs: detection and segmentation",
}
LIGHT = {"recipes", "runs"}  # commands that need neither torch nor timm, which take seconds to import
_ELSEWHERE = {"train": "fit", "eval": "validate", "infer": "predict", "explain": "analyze"}  # what other tools call them
_GROUPS = {name.partition(" ")[0] for name in COMMANDS if " " in name}  # first words of two-word commands
_TRAIN = ("docstring_parser", "jsonargparse", "lightning", "rich", "safetensors", "sklearn", "tensorboard", "torchmetrics")
_DENSE = ("faster_coco_eval", "segmentation_models_pytorch")
_EXTRAS = {
    **dict.fromkeys(_TRAIN, "train"),
    **dict.fromkeys(_DENSE, "dense"),
    "matplotlib": "plots",
}  # extra by module
_MAX_MESSAGE = 4000  # characters


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit status; failures are reported on one line on stderr.

    Args:
        argv: Arguments without the program name; by default those of the process.

    Returns:
        0; 2 for a user's error; 1 if only part of the work could be done; 128 + signal number, such as 130 for Ctrl-C and
        141 if the reader of stdout has left.

    Example:
        >>> main(["--version"])
        flatten 0.1.0
        0
    """
    _escape_unencodable()
    try:
        with without_working_directory():
            run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except ModuleNotFoundError as error:
        if error.name is None:  # raised by a library with its own advice
            return _fail(str(error))
        extra = _EXTRAS.get(error.name.partition(".")[0])
        if extra is None:
            raise
        return _fail(f"this command needs {error.name}, which is not installed: pip install 'flatten-transformer[{extra}]'")
    except KeyboardInterrupt as stop:
        number = stop.number if isinstance(stop, StoppedError) else signal.SIGINT
        return _say(str(stop) or "interrupted", 128 + number)
    except UnfinishedError as error:
        return _say(str(error), 1)
    except (ValueError, OSError, FloatingPointError, UnavailableError) as error:
        if isinstance(error, BrokenPipeError) and _reader_has_left():
            return 128 + getattr(signal, "SIGPIPE", 13)  # which Windows does not have
        if os.environ.get("FLATTEN_DEBUG"):
            raise
        return _fail(str(error))
    return 0


def _fail(message: str) -> int:
    return _say(f"error: {message}", 2)


def _say(message: str, status: int) -> int:
    line = printable(" ".join(message.split()))
    sys.stderr.write(f"flatten: {line if len(line) <= _MAX_MESSAGE else line[:_MAX_MESSAGE] + ' …'}\n")
    return status


def _escape_unencodable() -> None:
    """Let stdout escape characters outside its encoding, as stderr does, instead of failing."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _reader_has_left() -> bool:
    """Return whether stdout is a closed pipe; if so, redirect Python's last flush to nowhere."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        closed = bool(poll.poll(0))
    except (OSError, ValueError, AttributeError):  # not a file, or no poll on this system
        return False
    if closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return closed


def run(argv: list[str]) -> None:
    """Run a command line; errors are exceptions.

    Raises:
        ValueError: If there is no such command, or an argument is invalid.
    """
    argv = argv or ["--help"]
    length = 2 if argv[0] in _GROUPS and not "".join(argv[1:2]).startswith("-") else 1
    name, arguments = " ".join(argv[:length]), argv[length:]
    if name in ("-h", "--help", "help"):
        sys.stdout.write(overview())
    elif name == "--version":
        sys.stdout.write(f"flatten {__version__}\n")
    elif name in TRAINING:
        if answer(name, arguments):  # type: ignore[arg-type]  # which is one of its literals
            return
        run_package()
        from flatten_transformer.training.cli import train  # slow to import, unneeded for `flatten --help`

        train(name, arguments)  # type: ignore[arg-type]  # as above
    elif name in COMMANDS:
        if name not in LIGHT:
            run_package()
            arguments = take_imports(arguments)
        words = name.replace("-", "_").split()
        function = resolve_name(f"{commands.__name__}.{'_'.join(words)}:{words[-1]}")
        if name in LIGHT and not any(argument.startswith("-") for argument in arguments):
            function(arguments)  # words alone need no parser, which is slow to import too
        else:
            call(name, function, arguments)
    elif name in _GROUPS and arguments[:1] in ([], ["-h"], ["--help"]):
        sys.stdout.write(overview(f"{name} "))
    elif name in _GROUPS:
        words = [other.removeprefix(f"{name} ") for other in COMMANDS if other.startswith(f"{name} ")]
        raise ValueError(f"flatten {name} needs one more word: {', '.join(words)}")
    else:
        group = f"{name.partition(' ')[0]} "
        names = [*TRAINING, *COMMANDS]
        near = [other for other in names if other.startswith(group)] or names
        raise ValueError(f"no command {name!r}: {did_you_mean(_ELSEWHERE.get(name, name), near)}")


def run_package() -> None:
    """Run the package's ``__init__``, which registers the models, if ``flatten_command`` has put it off."""
    package = sys.modules["flatten_transformer"]
    if not hasattr(package, "__all__"):
        importlib.reload(package)


def overview(group: str = "") -> str:
    """Return the output of ``flatten --help``, or with ``"benchmark "`` that of ``flatten benchmark --help``."""
    summaries = {name: summary for name, summary in {**TRAINING, **COMMANDS}.items() if name.startswith(group)}
    width = max(map(len, summaries))
    lines = [f"  flatten {name:<{width}}  {summary}" for name, summary in summaries.items()]
    return "\n".join(
        (
            "Focused linear attention for vision Transformers: train, judge and use models.",
            "",
            *lines,
            "",
            "  flatten COMMAND --help          the options of a command",
            "  flatten COMMAND --import my.py  with attentions, data sets or tasks of your own",
            "  flatten --version               the version of this library",
            "",
            "Begin with:  flatten recipes",
            "             flatten fit --config digits/flatten_deit",
            "FLATTEN_DEBUG=1 shows where an error comes from.",
            "",
        )
    )


def call(name: str, function: Callable[..., object], argv: list[str]) -> None:
    """Call a typed function with command-line arguments.

    Positional-only parameters are positional, as is a list without a default, which takes one or more values; one with a
    default takes none, too, and is positional if positional-only. All others are options.

    Args:
        name: Command name, for the help.
        function: Its parameters become arguments, its Google docstring their help.
        argv: The arguments.

    Raises:
        ValueError: If an argument is invalid.

    Example:
        >>> def repeat(words: list[str], times: int = 1) -> None:
        ...     print(*words * times)
        >>> call("repeat", repeat, ["a", "b", "--times", "2"])
        a b a b
    """
    from docstring_parser import parse  # slow to import, like the next; unneeded for `flatten --help`

    from flatten_transformer.utils.arguments import ANY_TEXT, RaisingParser

    docstring = parse(function.__doc__ or "")
    help_texts = {parameter.arg_name: parameter.description for parameter in docstring.params}
    parser = RaisingParser(prog=f"flatten {name}", description=docstring.short_description, parser_mode=ANY_TEXT)
    types = get_type_hints(function)
    parameters = inspect.signature(function).parameters.values()
    positional_only = [p for p in parameters if p.kind is p.POSITIONAL_ONLY]
    lists = [p for p in parameters if p.default is p.empty and get_origin(types[p.name]) is list]
    for each in (*positional_only, *lists):
        of_many, required = get_args(types[each.name]), each.default is each.empty
        default: dict[str, Any] = {} if required else {"default": each.default}  # which the parser allows to none but these
        parser.add_argument(
            each.name,
            nargs=("+" if required else "*") if of_many else None,
            type=of_many[0] if of_many else types[each.name],
            metavar=each.name.upper(),
            help=help_texts.get(each.name),
            **default,
        )
    parser.add_function_arguments(function, as_group=False, skip={p.name for p in (*positional_only, *lists)})
    values = vars(parser.parse_args(argv))
    first = [values.pop(p.name) for p in positional_only]
    function(*first, **values)
