"""Errors that a learner can act on: one sentence that says what is wrong, where, and the mend."""


class WorkshopError(Exception):
    """An error whose message is the whole story: what happened, and what to do about it."""

    def _render_traceback_(self) -> list[str]:
        """IPython asks for this: show the sentence, not forty lines of traceback."""
        return [f"{type(self).__name__}: {self}"]
