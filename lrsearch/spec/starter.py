"""A commented study file to start from, for a model of timm and a folder of images, or for a module of the user's own."""

import ast
from collections.abc import Sequence
from pathlib import Path

from lrsearch.errors import ConfigError

IMAGES = {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}  # what torchvision's ImageFolder takes
MOST_CALIBRATION = 500  # examples: more tell the fits little
SHARE = 4  # of one folder's images, one in so many calibrates
_REST = """\
# Which layers may become what: auto is the default, and offers what lowers the costs named below; or the name of a shipped space such
# as mobilenetv3, or a file of yours.
space: auto

# Upper limits that every model found holds: ratios of the dense model, or absolute. The first one is what models are compared by.
budget: {{{budget}}}
# budget: {{weight_bytes: 512 KiB}}     # the file
# budget: {{latency_ms: 4.0}}           # needs latency, below

# How values are stored: float32, float16, bfloat16 or int8.
weights: {{values: float32}}

# latency: {{backend: onnxruntime, threads: 1, batch: 1}}    # measured here; take space: latency with it

# How long it looks, besides some plans that cost nothing to compute and that it must beat.
search: {{trials: 40}}

# Rank the best after a short distillation finetune: better models, longer studies. It needs data.train.
# proxy: {{finetune: {{steps: 100, rungs: 3, batch: 64}}}}
"""


def for_images(model: str, folder: Path, checkpoint: Path | None = None) -> str:
    """The study file of timm's ``model`` on ``folder/class/image``, or ``folder/train/class/image`` and ``folder/val/class/image``.

    Raises:
        ConfigError: there are no such images.
    """
    train, others = folder / "train", [folder / name for name in ("val", "valid", "validation", "test")]
    val = next((path for path in others if path.is_dir()), None)
    apart = val is not None and train.is_dir()
    classes, images = _counted(train if apart else folder)
    calibration = max(1, min(MOST_CALIBRATION, images // SHARE))
    place = f"folder: {_quoted(train if apart else folder)}"
    score = f"folder: {_quoted(val)}" if apart and val else f"{place}, slice: [{calibration}, {images}]"
    rest = f"{place}, slice: [{calibration}, {images}]" if apart else f"{place}, slice: [0, {calibration}]"
    source = f"checkpoint: {_quoted(checkpoint)}, args: {{num_classes: {classes}}}" if checkpoint else "pretrained: true"
    note = "" if checkpoint else (
        f"# Its own classes must be those of the folders ({classes} here) for a metric. A checkpoint of yours:\n"
        f"# model: {{timm: {model}, checkpoint: weights.safetensors, args: {{num_classes: {classes}}}}}\n"
    )
    return _whole(f"{note}model: {{timm: {model}, {source}}}", (
        ("calibration", place + f", slice: [0, {calibration}]", "for the layers' statistics"),
        ("train", rest, "to finetune on"), ("score", score, "what models are ranked on: in no other set"),
    ), "params: 0.5")


def for_module(path: Path) -> str:
    """The study file of a module with a function that makes the model, and one that makes the data; it is read, and not run.

    Raises:
        ConfigError: it is no Python module, or has no such functions.
    """
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError) as error:
        raise ConfigError("must be a Python module", value=str(error), place=str(path), remedy="Give the file with your model.") from None
    functions = {node.name: [a.arg for a in node.args.args] for node in tree.body if isinstance(node, ast.FunctionDef)}
    model = _first(functions, ("model", "build", "network", "net"))
    data = _first(functions, ("data", "dataset", "load"))
    if model is None or data is None:
        rule = "must define a function that makes the model (such as model) and one that makes the data (such as data)"
        value = f"functions {', '.join(functions) or 'none'}"
        raise ConfigError(rule, value=value, place=str(path), remedy=f"Write, in {path.name}: {_SKETCH}")
    name = next(iter(functions[data]), None)
    module, roles = path.stem, ("calibration", "train", "score")
    sources = [(role, f'call: "{module}:{data}"' + (f", args: {{{name}: {role}}}" if name else ""), _MEANING[role]) for role in roles]
    return _whole(f'model: {{call: "{module}:{model}"}}    # an nn.Module, trained', sources, "params: 0.5")


_MEANING = {
    "calibration": "for the layers' statistics: some hundred examples", "train": "to finetune on", "score": "what models are ranked on",
}
_SKETCH = "def model(): return net; def data(split): return inputs, labels."


def _first(functions: dict[str, list[str]], words: Sequence[str]) -> str | None:
    return next((name for word in words for name in functions if word in name.lower() and not name.startswith("_")), None)


def _whole(model: str, sources: Sequence[tuple[str, str, str]], budget: str) -> str:
    data = "\n".join(f"  {role}: {{{source}}}    # {meaning}" for role, source, meaning in sources)
    head = "# A study: lrsearch layers FILE shows what can be compressed, lrsearch search FILE runs it, and goes on where it stopped.\n"
    return f"{head}{model}\ndata:\n{data}\n\n{_REST.format(budget=budget)}"


def _quoted(path: Path | None) -> str:
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _counted(folder: Path) -> tuple[int, int]:
    """How many class folders, and images in them."""
    classes = [path for path in sorted(folder.iterdir()) if path.is_dir()] if folder.is_dir() else []
    images = sum(p.suffix.lower() in IMAGES for c in classes for p in c.rglob("*"))
    if images < 2 * len(classes) or not classes:
        raise ConfigError(
            "must be a folder of class folders with images", value=f"{len(classes)} folders, {images} images", place=str(folder),
            remedy="Lay the images out as folder/class/image.jpg, or folder/train/class/ and folder/val/class/.",
        )
    return len(classes), images
