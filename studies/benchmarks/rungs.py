"""Does halving pay? Hypervolume at equal total finetune steps: halving, what is not dominated at rung 0, and everything.

    python studies/benchmarks/rungs.py STUDY OUT [--seeds 3] [--budget 8] [--rungs 3] [--set KEY=VALUE]

All rules get the same plans: the controls, then those of the learned sampler, which sees rung 0 alone; "mixed" in an order
shuffled by the seed, as the controls, coming first, would use up a small budget. A plan is scored after each rung's steps
once for all rules; what is finetuned without halving pauses at the same rungs. Each rule spends finetune steps until it
has had ``--budget`` full finetunes; scores are kept in OUT and not made again.
Volume of log10 KL below 1 nat and above 1e-4, and of the cost ratio below 1; of complete plans.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from lrsearch.search.halving import Halving
from lrsearch.search.records import SEARCH, Record, values
from lrsearch.spec.front import hypervolume, non_dominated
from lrsearch.spec.progress import Progress
from lrsearch.spec.score import Score
from lrsearch.spec.shipped import load_study
from lrsearch.study.finetune_checkpoints import FinetuneCheckpoints
from lrsearch.study.loop import Search
from lrsearch.study.losses import Losses
from lrsearch.study.opening import open_search
from lrsearch.study.study_folder import StudyFolder
from lrsearch.workflows.materials import Materials

SHARES = (0.25, 0.5, 0.75, 1.0)
Curve = list[tuple[int, float]]


class Table:
    """Scores of plans at every rung, made when asked for and kept in a folder; numbers stand for plans, whatever their seed."""

    def __init__(self, search: Search, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.search, self.path, self.ends = search, folder / "scores.json", (0, *search.evaluator.config.finetune.ends)
        self.known = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.losses, self.paused = Losses(StudyFolder(folder)), FinetuneCheckpoints(StudyFolder(folder))

    def number(self, record: Record) -> int:
        """The number of a plan, in the order in which they were first asked for."""
        return self.known.setdefault(record.plan.fingerprint, {"number": len(self.known), "scores": []})["number"]

    def score(self, record: Record, rung: int) -> Score:
        number = self.number(record)
        scores = self.known[record.plan.fingerprint]["scores"]
        while len(scores) <= rung:
            scores.append(self._made(record, number, len(scores)).to_dict())
            scratch = self.path.with_suffix(".writing")
            scratch.write_text(json.dumps(self.known))
            scratch.replace(self.path)
        return Score(**scores[rung])

    def _made(self, record: Record, number: int, rung: int) -> Score:
        evaluator, fits = self.search.evaluator, self.search.profile.fits(record.plan)
        if rung == 0:
            scored = evaluator.score(fits, f"plan {number}")
        else:
            training = evaluator.training(fits, self.paused.load(number))
            corrected = self.known[record.plan.fingerprint]["scores"][0]["batchnorm"]
            scored = evaluator.trained(training, self.ends[rung], f"plan {number}", corrected)
            self.paused.save(number, training.state_dict())
        score, losses = scored.score, scored.comparison.losses(self.search.objectives[0])
        if losses is not None:
            self.losses.save(number, rung, losses)
        print(f"  plan {number} rung {rung}: KL {score.kl:.4f} ± {score.divergence_stderr:.4f}, metric {score.quality:.4f}", flush=True)
        return score


def volume(search: Search, records: list[Record]) -> float:
    """Of the complete plans."""
    dense = search.proposals.dense
    points = []
    for r in (r for r in records if r.complete):
        first, *costs = values(r, search.objectives)
        points.append((np.log10(max(first, 1e-4)), *(c / d for c, d in zip(costs, dense.values(), strict=True))))
    return hypervolume(points, (0.0, *[1.0] * len(dense)))


def straight(table: Table, plans: list[Record], chosen: Callable[[list[Record]], bool]) -> Iterator[tuple[int, list[Record]]]:
    """Each plan in turn at rung 0; those ``chosen`` beside the ones before are finetuned to the end. Steps, and all records so far."""
    done: list[Record] = []
    for plan in plans:
        done.append(replace(plan, scores=(table.score(plan, 0),), complete=False))
        if chosen(done):
            done[-1] = replace(plan, scores=tuple(table.score(plan, rung) for rung in range(len(table.ends))), complete=True)
            yield table.ends[-1], done


def halved(table: Table, plans: list[Record], halving: Halving, controls: int) -> Iterator[tuple[int, list[Record]]]:
    """As a search does it: all controls first, then a plan whenever no rung is due."""
    done: dict[int, Record] = {}
    waiting = list(plans)
    while True:
        due = halving.due(list(done.values()), {}, final=not waiting) if len(done) >= controls else None
        if due:
            record, rung = due
            done[record.number] = replace(record, scores=(*record.scores, table.score(record, rung)), complete=rung == halving.last)
            yield table.ends[rung] - table.ends[rung - 1], list(done.values())
        elif waiting:
            plan = waiting.pop(0)
            done[plan.number] = replace(plan, scores=(table.score(plan, 0),), complete=not halving.last)
        else:
            return


def curve(search: Search, steps: Iterator[tuple[int, list[Record]]], budget: int) -> Curve:
    """Total finetune steps → hypervolume."""
    found, spent = [(0, 0.0)], 0
    for more, records in steps:
        if spent + more > budget:
            break
        spent += more
        found.append((spent, volume(search, records)))
    print(f"  {len(records)} plans, {sum(r.complete for r in records)} at the last rung, {spent} steps", flush=True)
    return found


def at(found: Curve, steps: float) -> float:
    return max(v for s, v in found if s <= steps)


def undominated(search: Search, done: list[Record]) -> bool:
    """Whether no earlier plan dominates the last one at rung 0."""
    return bool(non_dominated([values(r, search.objectives, 0) for r in done])[-1])


def is_control(record: Record) -> bool:
    return record.source != SEARCH


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("study")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rungs", type=int, default=3)
    parser.add_argument("--budget", type=float, default=8, help="full finetunes that each rule may spend")
    parser.add_argument("--reductions", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--set", action="append", default=[])
    args = parser.parse_args()
    sys.path.insert(0, str(Path.cwd()))
    base = load_study(args.study, [*args.set, f"proxy.finetune.rungs={args.rungs}"])
    given = Materials.of_study(base, "calibration", "score", "train")
    model, sets = given.model, given.sets
    volumes: dict[str, list[list[float]]] = {}
    total = int(args.budget * base.proxy.finetune.steps)
    for seed in range(args.seeds):
        config = base.model_copy(update={"search": base.search.model_copy(update={"seed": seed, "sampler": "learned"})})
        with tempfile.TemporaryDirectory() as scratch:
            fast = load_study(args.study, [*args.set, "proxy.finetune.steps=0", f"search.seed={seed}"])
            sampled = open_search(model, sets["calibration"], sets["score"], None, fast, Path(scratch), Progress()).run()
        with tempfile.TemporaryDirectory() as scratch:
            search = open_search(model, sets["calibration"], sets["score"], sets["train"], config, Path(scratch), Progress())
            table = Table(search, args.out)
            plans = [replace(r, number=table.number(r), scores=()) for r in sampled if r.twin is None]
            controls = sum(map(is_control, plans))
            print(f"seed {seed}: {len(plans)} plans, {controls} of them controls; n = {len(sets['score'])}, rungs end at {table.ends}",
                  flush=True)
            rules = {f"halving, 1 of {n}": halved(table, plans, replace(search.halving, reduction=n, noise=table.losses.noise), controls)
                     for n in args.reductions}
            mixed = [plans[i] for i in np.random.default_rng(seed).permutation(len(plans))]
            rules |= {
                "not dominated, or a control": straight(table, plans, lambda done, s=search: is_control(done[-1]) or undominated(s, done)),
                "not dominated, mixed": straight(table, mixed, lambda done, s=search: undominated(s, done)),
                "everything, mixed": straight(table, mixed, bool),
            }
            for name, steps in rules.items():
                print(f" {name}", flush=True)
                found = curve(search, steps, total)
                volumes.setdefault(name, []).append([at(found, share * total) for share in SHARES])
    shown = "  ".join(f"{int(share * total):>15}" for share in SHARES)
    print(f"hypervolume after so many finetune steps, {args.seeds} seeds\n{'':28}{shown}")
    for name, rows in volumes.items():
        cells = [f"{statistics.mean(c):.4f}" + (f" ± {statistics.stdev(c):.4f}" if len(c) > 1 else "") for c in zip(*rows, strict=True)]
        print(f"{name:28}{'  '.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
