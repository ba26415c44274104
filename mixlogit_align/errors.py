"""One tree of errors. Every message says what came, what was expected, and what to try."""

from __future__ import annotations


class MixlogitError(Exception):
    """Root of every error that this package raises on purpose."""


class InvalidInputError(MixlogitError, ValueError):
    """An argument, a row of data or a setting breaks a rule; the message names it."""


class IntegrationError(MixlogitError, ValueError):
    """An integration rule does not fit the mixing distribution or the data it is asked to serve."""


class ConvergenceError(MixlogitError, RuntimeError):
    """An iterative solution did not reach an answer that can be defended."""


class IntegrationWarning(UserWarning):
    """An expectation is approximated more coarsely than elsewhere, or than the estimates need."""


class ConvergenceWarning(UserWarning):
    """A result exists, but its evidence of convergence is incomplete."""


def explain(what: str, *, got: object, expected: str, hint: str) -> str:
    """Compose an error message.

    Parameters
    ----------
    what : str
        The argument, row or rule at fault, for example ``"utility_diff"``.
    got : object
        What came; shown with ``str``.
    expected : str
        What would have been accepted.
    hint : str
        What to try; completes the sentence "Try ...".

    Returns
    -------
    str
        ``"<what>: got <got>; expected <expected>. Try <hint>."``
    """
    return f"{what}: got {got}; expected {expected}. Try {hint.rstrip('.')}."


def require_count(name: str, value: object, least: int = 1, *, hint: str | None = None) -> int:
    """The value, refused where it is not a whole number of at least ``least``.

    Parameters
    ----------
    name : str
    value : object
    least : int
    hint : str, optional
        By default ``name=least``.

    Returns
    -------
    int

    Raises
    ------
    InvalidInputError
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        whole = isinstance(value, int) and not isinstance(value, bool)
        expected = f"{least} or more" if whole else f"a whole number, {least} or more"
        raise InvalidInputError(explain(name, got=repr(value), expected=expected, hint=hint or f"{name}={least}"))
    return value
