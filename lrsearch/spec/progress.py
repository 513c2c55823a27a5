"""Progress: what a study tells whoever watches it; the default is silent."""


class Progress:
    """Override what you want to show."""

    def stage(self, title: str, total: int, done: int = 0) -> None:
        """A new stage of ``total`` steps begins, ``done`` of them already finished."""

    def advance(self, best: str = "") -> None:
        """One step of the stage is finished; ``best`` describes the best result so far."""

    def show(self, best: str) -> None:
        """The best result so far changed, with no step finished."""

    def note(self, text: str) -> None:
        """Something worth a line in the log."""
