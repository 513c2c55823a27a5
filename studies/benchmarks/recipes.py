"""Recipes of the finetune, each on the same knapsack plan: what is left of the KL afterwards.

    python studies/benchmarks/recipes.py STUDY --limit params=0.3 [--steps 150] [--batch 128] [--train START STOP] \
        --judge START STOP [--judge-source MODULE:FUNCTION] [--recipes optimizer=adam loss=outputs,learning_rate=0.03 …] \
        [--set KEY=VALUE]

A recipe without a learning rate finds it; ``untrained beats it`` says that the finetune handed over what it was given.

A recipe is chosen by ``judge``: data that neither the fits nor the finetune read. The score data are shown beside it, and decide
nothing. ``--train`` and ``--judge`` are slices of data.train's source (of data.calibration's where a study has none), in its fixed
shuffle; ``--judge-source`` names another for ``--judge``.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from torch import Tensor

from lrsearch.spec.config import FinetuneConfig, SourceConfig
from lrsearch.spec.parse import parse
from lrsearch.spec.progress import Progress
from lrsearch.spec.shipped import lay_over, load_study
from lrsearch.study.opening import open_search
from lrsearch.task.sources import load_examples
from lrsearch.workflows.materials import Materials


def main() -> None:
    args = _arguments()
    sys.path.insert(0, str(Path.cwd()))
    metric, ratio = args.limit.split("=")
    limited = ("proxy.finetune.steps=0", f"budget={{{metric}: 1.0}}", f"objectives=[kl, {metric}]")  # what is counted decides the space
    config = load_study(args.study, [*limited, *args.set])
    given = Materials.of_study(config, "calibration", "score")
    model, score = given.model, given.score
    assert config.data is not None, "it was loaded"
    source = config.data.train or config.data.calibration
    other = SourceConfig(call=args.judge_source, args={}) if args.judge_source else source
    parts = ((source, args.train), (other, args.judge))
    train, judge = (load_examples(where.model_copy(update={"slice": part}), "train", model) for where, part in parts)
    with tempfile.TemporaryDirectory() as folder:
        search = open_search(model, given.calibration, score, None, config, Path(folder), Progress())
        decoder, evaluator = search.proposals.decoder, search.evaluator
        plan = decoder.solve(decoder.damage, {metric: float(ratio) * getattr(decoder.costs.dense, metric)})
        assert plan is not None, "the ratio can be met"
        fits = search.profile.fits(plan)
        expected, reference = (evaluator.outputs_of(examples) for examples in (judge, score))

        def shown() -> str:
            judged, scored = expected.compare(evaluator.work, measured=False), reference.compare(evaluator.work)
            points = 100 * (scored.score(0, False, "score").quality - evaluator.baseline.quality)
            return f"judge KL {mean(judged.divergences)}; score KL {mean(scored.divergences)}, {points:+.2f} points"

        evaluator.score(fits, "before")
        print(f"{args.study} at {args.limit} of dense, knapsack; "
              f"{len(train)} to train on, {len(judge)} to judge, {len(score)} to score; before: {shown()}", flush=True)
        for recipe in args.recipes:
            settings = lay_over({"steps": args.steps, "batch": args.batch}, recipe.split(","))
            finetune = parse(FinetuneConfig, settings, recipe)
            evaluator.config = evaluator.config.model_copy(update={"finetune": finetune})
            evaluator.teacher = evaluator.taught(train, finetune)
            settled = evaluator.score(fits, recipe).score.batchnorm
            began, found = time.process_time(), "given"
            evaluator.recipe = finetune.recipe
            if evaluator.recipe is None:
                test = evaluator.range_test(fits)
                evaluator.recipe, found = test.recipe, str(test)
            tested = time.process_time() - began
            training = evaluator.training(fits)
            training.best.judge()
            before = training.best.loss
            evaluator.trained(training, finetune.steps, recipe, settled)
            spent = time.process_time() - began - tested
            kept = "" if training.best.loss < before else "; untrained beats it"
            print(f"  {finetune.steps} of {finetune.batch}, {recipe}: {shown()}; held out {before:.4f} -> {training.best.loss:.4f}{kept}; "
                  f"{len(training.teacher.stages)} stages; {spent:.0f} s of CPU, {tested:.0f} s to find the rate ({found})", flush=True)


def mean(values: Tensor) -> str:
    return f"{values.mean():.4f} ± {values.std() / len(values) ** 0.5:.4f}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("study")
    parser.add_argument("--limit", required=True)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--train", type=int, nargs=2)
    parser.add_argument("--judge", type=int, nargs=2, required=True)
    parser.add_argument("--judge-source")
    parser.add_argument("--recipes", nargs="+", required=True)
    parser.add_argument("--set", action="append", default=[])
    return parser.parse_args()


if __name__ == "__main__":
    main()
