"""A study goes from its folder to a storage that machines share, or back."""

from pathlib import Path

from lrsearch.errors import ConfigError
from lrsearch.study.moving import into_folder, into_storage
from lrsearch.study.study_folder import StudyFolder


def move(source: str | Path, target: str | Path, *, name: str | None = None) -> int:
    """Move a study with all its trials; only the copy may be searched then. Returns how many trials it has.

    Args:
        source: a study folder, or the URL of a storage.
        target: the other of them.
        name: of the study in the storage; that of the folder by default.

    Raises:
        LrsearchError: one of its kinds, for anything a caller can mend.
    """
    source, target = str(source), str(target)
    if ("://" in source) == ("://" in target):
        rule, remedy = "a study moves between a folder and a storage", "For example lrsearch move runs/mine postgresql://user@host/database."
        raise ConfigError(rule, value="two of a kind", place="lrsearch move", remedy=remedy)
    if "://" in target:
        return into_storage(StudyFolder(Path(source)), target, name or Path(source).resolve().name)
    return into_folder(source, name or Path(target).resolve().name, StudyFolder(Path(target)))
