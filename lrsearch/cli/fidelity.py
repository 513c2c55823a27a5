"""The command that says how far the rungs' rankings can be trusted."""

import argparse
import json

from rich.console import Console

from lrsearch.cli.display import narrow_table, watched
from lrsearch.cli.named import study_folder
from lrsearch.cli.text import plain
from lrsearch.spec.config import StudyConfig
from lrsearch.workflows import fidelity as workflow


def fidelity(config: StudyConfig, args: argparse.Namespace) -> int:
    """Compare the rungs with a long finetune, and show how well their rankings agree."""
    folder = study_folder(config, args)
    if args.json:
        found = workflow.fidelity(folder, study=config, plans=args.plans, long=args.long)
        print(json.dumps({"long": found.long, "steps": found.steps, "taus": json.loads(found.taus.to_json(orient="records"))}, indent=1))
        return 0
    with watched() as bars:
        found = workflow.fidelity(folder, study=config, plans=args.plans, long=args.long, progress=bars)
    table = narrow_table(f"Kendall's tau with {found.long} steps, {len(found.frame)} plans")
    for heading in ("rung", "steps", "all", "beside cost", "p"):
        table.add_column(heading, justify="right")
    for steps, t in zip(found.steps, found.taus.to_dict("records"), strict=True):
        table.add_row(str(t["rung"]), str(steps), f"{t['tau']:.2f}", f"{t['tau_beside_cost']:.2f}", f"{t['p']:.2g}")
    console = Console()
    console.print(table)
    console.print("beside cost: of what a parabola in log cost leaves of both scores; the costs alone can make tau over all high.")
    console.print(plain(f"figure: {found.page}"), soft_wrap=True, highlight=False, markup=False)
    return 0
