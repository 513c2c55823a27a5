"""Times many models beside each other, on this machine or, copied as it is, on another.

Needs Python's standard library alone and, to run ONNX models, NumPy and ONNX Runtime. In a folder that
``lrsearch latency pack`` wrote, ``python runner.py`` times what ``jobs.json`` lists and writes ``times.json``.
"""

import contextlib
import gc
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

Runner = Callable[[], None]

SESSIONS = 3  # of each model, as a runtime may place each differently in memory
ROUNDS, WHOLE_ROUNDS, MOST_ROUNDS = 12, 36, 60  # visits to each model: of layers, of whole models, and at most until confirmed
CONFIRMED = 0.01  # share by which the lower quartile of the visits may exceed the least
CALLS, VISIT_NS = 4, 2_000_000  # of one visit: calls at most, and nanoseconds after which it ends
CPUINFO = Path("/proc/cpuinfo")  # of Linux
EXTENSIONS = (  # of x86 and of Arm, as Linux names them, the widest last: they decide how long a product takes
    "sse4_2", "avx", "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "asimd", "asimddp", "i8mm", "sve", "sve2",
)
EXACT = 1e-6  # seconds: the resolution from which on the processor's clock is good enough


class Timing(NamedTuple):
    """Milliseconds of one call on :func:`clock`: the lower quartile, and percentiles, of all calls.

    On a quiet machine the lower quartile is next to the least; on a busy one the least is a matter of luck, the more so the
    fewer the calls.
    """

    ms: float
    p10: float
    median: float
    p90: float
    calls: int


def clock(threads: int) -> Callable[[], int]:
    """Nanoseconds: of a single thread, those of the processor; of several, those on the wall.

    A thread that computes all the time takes as long on either, unless it has to share the processor: a call that is
    longer than the system's time slice then never has it to itself, a shorter one may, and they could not be compared.
    """
    exact = time.get_clock_info("process_time").resolution <= EXACT
    return time.process_time_ns if threads == 1 and exact else time.perf_counter_ns


def interleaved(
    models: Sequence[Sequence[Runner]], threads: int, advance: Callable[[], None] = lambda: None, rounds: int = ROUNDS,
) -> list[Timing]:
    """Time all ``models`` in rounds, a few calls of each at a time, so that a slow moment touches them alike.

    What is not confirmed after ``rounds``, that is, whose visits' lower quartile is more than 1 % above their least, is
    measured again, beside the others of its kind, up to five times as often.

    Args:
        models: of each, runners that take turns: one and the same model may take some percent longer where its memory lies
            badly, so that several repeat better than one.
        threads: that each runner uses.
        advance: called after each of the ``rounds``.
        rounds: ``WHOLE_ROUNDS`` for whole models, few and each to be compared with the others, so that the same moments count for all.
    """
    now = clock(threads)
    calls: list[list[int]] = [[] for _ in models]
    visits: list[list[int]] = [[] for _ in models]
    with _undisturbed():
        for number in range(max(rounds, MOST_ROUNDS)):
            due = [i for i in range(len(models)) if number < rounds or not _confirmed(visits[i])]
            for i in due if number % 2 else reversed(due):
                visit = _visit(models[i][number % len(models[i])], now)
                calls[i] += visit
                visits[i].append(min(visit))
            if number < rounds:
                advance()
    return [_timing(sorted(values)) for values in calls]


def _visit(runner: Runner, now: Callable[[], int]) -> list[int]:
    """Nanoseconds of a few calls, after one that brings the model back into the caches."""
    runner()
    times: list[int] = []
    while len(times) < CALLS and (not times or sum(times) < VISIT_NS):
        began = now()
        runner()
        times.append(now() - began)
    return times


def _confirmed(visits: Sequence[int]) -> bool:
    best = sorted(visits)
    return best[len(best) // 4] <= (1 + CONFIRMED) * best[0]


def _timing(ns: Sequence[int]) -> Timing:
    def at(share: float) -> float:
        return ns[round(share * (len(ns) - 1))] / 1e6

    return Timing(at(0.25), at(0.1), at(0.5), at(0.9), len(ns))


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Without Python's garbage collector."""
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def cpu() -> str:
    """The processor's name and its widest extension: clouds give one name to several generations, which differ most in that."""
    shown, known = _of_cpu("model name", "Hardware", "Model"), cpu_flags()
    widest = next((each for each in reversed(EXTENSIONS) if each in known), "")
    return f"{shown or platform.processor() or platform.machine()}{f' ({widest})' if widest else ''}"


def same_cpu(one: str, other: str) -> bool:
    """Whether two names are of one processor, as :func:`cpu` gives them; one of them may lack the extension, as names did once."""
    return one == other or ((one in other or other in one) and _plain(one) == _plain(other))


def _plain(name: str) -> str:
    """``name`` without an extension."""
    return next((name.removesuffix(f" ({each})") for each in EXTENSIONS if name.endswith(f" ({each})")), name)


def cpu_flags() -> set[str]:
    """What the processor can do, as Linux names it; nothing elsewhere."""
    return set(_of_cpu("flags", "Features").split())


def _of_cpu(*keys: str) -> str:
    """What Linux says of its first processor, under one of the ``keys``."""
    lines = list[str]()
    with contextlib.suppress(OSError):
        lines = CPUINFO.read_text().splitlines()
    return next((value.strip() for key, _, value in (line.partition(":") for line in lines) if key.strip() in keys), "")


def machine_facts() -> dict[str, Any]:
    """The processor, the load (processes that want to run, mean of a minute) and the date."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else -1.0
    return {"cpu": cpu(), "load": round(load, 2), "date": datetime.now(UTC).isoformat(timespec="seconds")}


def onnx_runners(model: bytes | str, threads: int, inputs: Sequence[Any] | None = None) -> list[Runner]:
    """Calls of an ONNX model (its bytes or its path) in several sessions of ONNX Runtime; see :func:`onnx_runner`."""
    return [onnx_runner(model, threads, inputs) for _ in range(SESSIONS)]


def onnx_runner(model: bytes | str, threads: int, inputs: Sequence[Any] | None = None) -> Runner:
    """A call of an ONNX model with ONNX Runtime on the CPU.

    Args:
        inputs: an array for each of its inputs, in order; random numbers of the shapes that it declares if None.
    """
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    sources, random = session.get_inputs(), np.random.default_rng(0)
    kinds = {"tensor(float16)": np.float16, "tensor(double)": np.float64}
    if inputs is None:
        inputs = [random.standard_normal(each.shape).astype(kinds.get(each.type, np.float32)) for each in sources]
    given = {each.name: x for each, x in zip(sources, inputs, strict=True)}
    binding = session.io_binding()
    for name, x in given.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(x))
    for output, value in zip(session.get_outputs(), session.run(None, given), strict=True):
        binding.bind_ortvalue_output(output.name, onnxruntime.OrtValue.ortvalue_from_numpy(value))

    def run() -> None:
        session.run_with_iobinding(binding)

    return run


def arrays_beside(model: Path) -> list[Any] | None:
    """The inputs in the ``.npz`` file beside a model, ``arr_0`` and so on; None if there is none."""
    import numpy as np

    path = model.with_suffix(".npz")
    if not path.exists():
        return None
    with np.load(path) as kept:
        return [kept[f"arr_{number}"] for number in range(len(kept.files))]


def main(folder: Path) -> None:
    """Time the jobs in ``folder``."""
    import onnxruntime

    jobs = json.loads((folder / "jobs.json").read_text())
    before = machine_facts()
    paths = [folder / name for name in jobs["models"]]
    models = [onnx_runners(str(path), jobs["threads"], arrays_beside(path)) for path in paths]
    print(f"{len(models)} models on {before['cpu']}, ONNX Runtime {onnxruntime.__version__}, {jobs['threads']} threads")
    times = interleaved(models, jobs["threads"], lambda: print(".", end="", flush=True))
    result = {**before, "version": onnxruntime.__version__, "fingerprint": jobs["fingerprint"], "times": times}
    (folder / "times.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"\nwritten to {folder / 'times.json'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
