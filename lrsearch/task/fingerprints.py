"""Fingerprints of examples: which are in two sets, and whether a set is the one of before."""

import hashlib

from lrsearch.errors import DataError
from lrsearch.task.data import Examples


def refuse_overlap(scoring: Examples, *others: Examples) -> dict[str, str]:
    """Check that no input of ``scoring`` is in another set: a score would be of what was fitted or trained on.

    Returns:
        role → fingerprint of that set's examples, whatever their order.

    Raises:
        DataError: some are.
    """
    mine = scoring.digests()
    for other in others:
        known = set(other.digests())
        if shared := [i for i, one in enumerate(mine) if one in known]:
            shown = ", ".join(map(str, shared[:5])) + (", …" if len(shared) > 5 else "")
            raise DataError(
                "score data must not be in another set", value=f"{len(shared)} inputs in both, in data.{scoring.role} at {shown}",
                place=f"data.{other.role} and data.{scoring.role}",
                remedy="Remove these duplicates, or take disjoint slices, for example slice: [0, 1000] and [1000, 30000].",
            )
    return {s.role: hashlib.sha256(b"".join(sorted(s.labelled_digests()))).hexdigest()[:16] for s in (scoring, *others)}


def ordered_print(examples: Examples) -> str:
    """A fingerprint of the examples in their order."""
    return hashlib.sha256(b"".join(examples.digests())).hexdigest()[:16]
