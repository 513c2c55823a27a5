"""The paper's own claim: L + S against S alone and L alone, at one budget, with the same search and the same finetune.

    python studies/benchmarks/families.py STUDY OUT.csv [--metric params] [--ratios 0.5 0.35] [--trials 12] [--seeds 1] \
        [--steps 50 --batch 32 --rate 0.001 --finetunes 1] [--examples N] [--set KEY=VALUE]

Every arm searches the same profile, within its families, for plans between 0.95 of the budget and the budget; the four controls at
the budget that it can make come first. The plan of lowest KL is then finetuned on the calibration images, ``--finetunes`` times, each in
another order of the images. Each finetune is a row of OUT.csv; an arm that is there already is not run again. With ``--examples N`` a
search sees the first N score images alone, and the best plan is scored on the others too ("unseen"), before and after the finetune;
``--steps 0`` leaves that out. ``free`` lets every layer choose; ``L+S`` gives every compressed layer both parts.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from lrsearch.errors import BudgetError
from lrsearch.search.records import DENSE
from lrsearch.spec.config import ProxyConfig
from lrsearch.spec.progress import Progress
from lrsearch.spec.score import Score
from lrsearch.spec.shipped import load_study
from lrsearch.study.evaluator import Evaluator
from lrsearch.study.opening import open_search
from lrsearch.workflows.materials import Materials

ARMS = {"S": ["sparse"], "L": ["low-rank"], "L+S": ["low-rank+sparse"], "free": ["sparse", "low-rank", "low-rank+sparse"]}
COLUMNS = [
    "metric", "ratio", "arm", "seed", "order", "evaluations", "kl", "drop", "kl_unseen", "drop_unseen", "kl_finetuned", "drop_finetuned",
    "kl_finetuned_unseen", "drop_finetuned_unseen", "params_ratio", "bytes_ratio", "minutes", "note",
]


def main() -> None:
    args = arguments()
    sys.path.insert(0, str(Path.cwd()))
    for ratio in args.ratios:
        for arm in args.arms:
            for seed in range(args.seeds):
                key = {"metric": args.metric, "ratio": ratio, "arm": arm, "seed": seed}
                known = pd.read_csv(args.out) if args.out.exists() else pd.DataFrame(columns=COLUMNS)
                if not (known[list(key)] == pd.Series(key)).all(axis=1).any():
                    rows = pd.DataFrame([key | row for row in outcomes(args, **key)], columns=COLUMNS)
                    rows.to_csv(args.out, mode="a", header=not args.out.exists(), index=False)
                    print(rows.to_string(index=False, header=False), flush=True)
    print(pd.read_csv(args.out).round(4).to_string(index=False))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("study")
    parser.add_argument("out", type=Path)
    parser.add_argument("--metric", default="params")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.5, 0.35])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=0.001)
    parser.add_argument("--finetunes", type=int, default=1)
    parser.add_argument("--examples", type=int)
    parser.add_argument("--set", action="append", default=[])
    return parser.parse_args()


def outcomes(args: argparse.Namespace, metric: str, ratio: float, arm: str, seed: int) -> list[dict[str, object]]:
    """What the best plan of an arm loses, before and after each finetune."""
    began = time.monotonic()
    config = load_study(args.study, [
        *args.set, f"budget={{{metric}: {ratio}}}", f"objectives=[kl, {metric}]", f"search.lowest={0.95 * ratio}", f"search.seed={seed}",
        "search.control_points=1", f"search.trials={args.trials}", f"search.families=[{', '.join(ARMS[arm])}]", "proxy.finetune.steps=0",
    ])
    given = Materials.of_study(config, "calibration", "score")
    model, calibration, scoring = given.model, given.calibration, given.score
    seen = min(args.examples or len(scoring), len(scoring))
    scoring, others = scoring.part(range(seen)), scoring.part(range(seen, len(scoring)))
    with tempfile.TemporaryDirectory() as folder:
        try:
            search = open_search(model, calibration, scoring, None, config, Path(folder), Progress())
        except BudgetError as error:
            return [{"note": str(error)}]
        records = [r for r in search.run() if r.source != DENSE]
        best = min(records, key=lambda r: r.score.kl)
        fits, task, whole = search.profile.fits(best.plan), search.evaluator.task, search.proposals.decoder.costs.dense
    row = {
        "evaluations": len(records), "params_ratio": best.cost.params / whole.params,
        "bytes_ratio": best.cost.weight_bytes / whole.weight_bytes, "note": "", **losses("", search.evaluator, best.score),
    }
    unseen = Evaluator(model, calibration, others, None, config.proxy, task) if len(others) else None
    if unseen:
        row |= losses("_unseen", unseen, unseen.score(fits, arm).score)
    if not args.steps:
        return [row | {"minutes": minutes(began)}]
    evaluator, rows = Evaluator(model, calibration, scoring, calibration, recipe(config.proxy, args, seed), task), []
    for order in range(seed, seed + args.finetunes):
        evaluator.config = recipe(config.proxy, args, order)
        trained = evaluator.trained(evaluator.training(fits), args.steps, arm, best.score.batchnorm)
        lost = losses("_finetuned", evaluator, trained.score)
        if unseen:
            unseen.begin(trained.fits, evaluator.work.state_dict())
            again = unseen.rescored(trained.fits, args.steps, arm, best.score.batchnorm, calibration)
            lost |= losses("_finetuned_unseen", unseen, again.score)
        rows.append(row | lost | {"order": order, "minutes": minutes(began)})
    return rows


def recipe(proxy: ProxyConfig, args: argparse.Namespace, order: int) -> ProxyConfig:
    """``proxy`` with the finetune that is asked for, which takes the images in the order of seed ``order``."""
    finetune = {"steps": args.steps, "batch": args.batch, "learning_rate": args.rate, "batchnorm": "frozen", "seed": order}
    return proxy.model_copy(update={"finetune": proxy.finetune.model_copy(update=finetune)})


def minutes(began: float) -> float:
    return (time.monotonic() - began) / 60


def losses(when: str, evaluator: Evaluator, score: Score) -> dict[str, float]:
    """KL and points lost against the dense model on the evaluator's images, each under its name."""
    return {f"kl{when}": score.kl, f"drop{when}": 100 * (evaluator.baseline.quality - score.quality)}


if __name__ == "__main__":
    main()
