"""A latency budget beside a MACs budget of the same ratio: what the best model of each takes when it is measured, and what it lost.

    python studies/benchmarks/latency_studies.py STUDY --folder FOLDER [--metrics latency_ratio macs] [--ratios 0.8 …] [--set KEY=VALUE]

STUDY names the model and the data; the space is one whose every choice may save time. Each search ends with an export: the best
member is loaded by a fresh process and timed beside the dense model, and where it misses the budget, the next one is tried. A
table of each metric is measured once and kept in FOLDER, so that all its searches choose from the same forms and share one profile: where
latency is limited, layers are timed with what feeds the columns that they drop, which else has choices of its own. No finetuning.
"""

import argparse
import sys
from pathlib import Path

import torch

import lrsearch
from lrsearch.latency.runner import surroundings
from lrsearch.latency.table import LatencyTable
from lrsearch.report.certificate import Certificate
from lrsearch.spec.config import StudyConfig
from lrsearch.spec.parse import parse
from lrsearch.spec.shipped import load_study
from lrsearch.spec.space import Range, Rule, Space

LAYERS = {
    "efficientnet_lite0": {"layers": ("*",), "exclude": ("*conv_dw", "conv_stem")},
    "vit_small_imagenette": {"layers": ("blocks.*",)},
}
CHOICES = {
    "families": ("sparse", "low-rank"), "patterns": ("column", "row"), "density": Range(min=0.25, max=0.95, steps=10),
    "rank_ratio": Range(min=0.15, max=0.55, steps=6), "rank_multiple": "auto",
}
METRICS = {"latency_ratio": "latency_ms", "macs": "macs"}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("study", choices=LAYERS)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.8, 0.7, 0.6])
    parser.add_argument("--metrics", nargs="+", choices=METRICS, default=list(METRICS))
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--set", action="append", default=[])
    args = parser.parse_args()
    torch.set_num_threads(1)
    sys.path.insert(0, str(Path.cwd()))
    args.folder.mkdir(parents=True, exist_ok=True)
    tables = {metric: args.folder / f"{args.study}-{metric}.json" for metric in args.metrics}
    for metric, table in tables.items():
        if not table.exists():
            lrsearch.profile(configuration(args, metric, 1.0, None), out=table)
        told(LatencyTable.load(table))
    for ratio in args.ratios:
        for metric, table in tables.items():
            show(metric, ratio, shipped(configuration(args, metric, ratio, table), args.folder))


def configuration(args: argparse.Namespace, metric: str, ratio: float, table: Path | None) -> StudyConfig:
    """The study, of one budget; trials that look for much less than it would be wasted."""
    study = load_study(args.study, ["proxy.finetune.steps=0", *args.set])
    whole = {
        **study.model_dump(mode="json"), "name": f"{args.study}-{metric}-{ratio:g}",
        "space": Space(rules=(Rule(**LAYERS[args.study], **CHOICES),)), "budget": {metric: ratio},
        "latency": {"backend": "onnxruntime", "table": table}, "objectives": ("kl", METRICS[metric]),
        "search": {"trials": args.trials, "lowest": 0.95 * ratio, "control_points": 1},
    }
    return parse(StudyConfig, whole, "latency_studies")


def told(table: LatencyTable) -> None:
    c = table.conditions
    print(f"{c.backend} {c.version}, threads {c.threads}, batch {c.batch}, {c.dtype}, {c.cpu}, load {c.load}, {c.date}; dense "
          f"{table.dense.ms:.3f} ms", flush=True)


def shipped(config: StudyConfig, folder: Path) -> Certificate:
    """Search, and export the best member that holds its budget."""
    out = folder / config.name
    lrsearch.search(config, out=out)
    return lrsearch.export(out, study=config)


def show(metric: str, ratio: float, certificate: Certificate) -> None:
    f, refused = certificate.figures, certificate.origin.refused
    print(f"{metric:<13} {ratio:.2f}  measured {f['latency_ms_ratio']:.3f} ({f['latency_ms']:.3f} of {f['dense_latency_ms']:.3f} ms)  "
          f"macs {f['macs_ratio']:.3f} (deployed {f['deployed_macs_ratio']:.3f})  params {f['params_ratio']:.3f}  "
          f"drop {100 * f['metric_drop']:+.2f} points (n = {f['examples']})  "
          f"KL {f['divergence']:.4f}  refused {len(refused)}  {'passed' if certificate.passed else 'FAILED'}  "
          f"load {surroundings()['load']}",
          flush=True)
    for reason in (*refused.values(), *(check.missed() for check in certificate.failures)):
        print(f"    missed: {reason}", flush=True)


if __name__ == "__main__":
    main()
