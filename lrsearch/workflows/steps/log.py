"""The study's log."""

import logging
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from lrsearch.spec.config import StudyConfig
from lrsearch.study.identity import conditions


def log_settings(config: StudyConfig) -> None:
    """Versions, machine, device and settings of what runs now, two lines."""
    log = logging.getLogger("lrsearch")
    log.info("%s", ", ".join(f"{key} {value}" for key, value in {**conditions(), "device": config.device}.items() if key != "date"))
    log.info("settings: %s", config.model_dump_json(exclude_defaults=True))


class _Lines(logging.FileHandler):
    """A log that stops where its disk is full: that is told by whatever else cannot be written, and not once more for each line."""

    def handleError(self, record: logging.LogRecord) -> None:
        """A line that cannot be written is left out."""

    def close(self) -> None:
        with suppress(OSError):
            super().close()


class log_to:
    """While open, the package's log goes to a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        self.handler = _Lines(self.path)
        self.handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger = logging.getLogger("lrsearch")
        logger.setLevel(logging.INFO)
        logger.addHandler(self.handler)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            logging.getLogger("lrsearch").error("%s", error or kind)
        logging.getLogger("lrsearch").removeHandler(self.handler)
        self.handler.close()
