"""Text that names may be in, as a terminal may be shown it."""

import traceback
from pathlib import Path

LONGEST = 600  # characters of one line of an error
_HERE = Path(__file__).parents[1]


def plain(text: str) -> str:
    """``text`` with what is no printable character as its escape: names may hold a terminal's own commands."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str) -> str:
    """``text`` on one line, printable, shortened in its middle."""
    whole = plain(" ".join(text.split()))
    return whole if len(whole) <= LONGEST else f"{whole[: LONGEST // 2]} … {whole[-LONGEST // 2 :]}"


def unexpected(error: BaseException) -> str:
    """An error that lrsearch did not foresee: where, what, and what to do about it."""
    said = str(error).strip() or "no message"
    if isinstance(error, OSError) and error.strerror:
        place = str(error.filename) if error.filename is not None else _place(error)
        return f"{place}: must be readable and writable; got {error.strerror}. Mend that; the same command then goes on from there."
    if isinstance(error, MemoryError):
        return f"{_place(error)}: needs more memory; got {said}. Set proxy.batch lower, or use a machine with more."
    return f"{_place(error)}: must run; got {type(error).__name__}: {said}. This is not foreseen: --debug shows where it comes from."


def _place(error: BaseException) -> str:
    """The innermost of lrsearch's own lines."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if _HERE in Path(f.filename).parents] or frames
    if not own:
        return "lrsearch"
    path = Path(own[-1].filename)
    return f"{path.relative_to(_HERE.parent) if _HERE in path.parents else path.name}:{own[-1].lineno}"
