"""The two errors a user of spikeport has to know, and those of other libraries in one line."""


class SpikeportError(Exception):
    """Wrong use or bad input: says what is wrong, where, the limit, and what to do.

    The command line prints it without a traceback and ends with ``exit_status``.
    """

    exit_status = 2


class CheckFailed(SpikeportError):
    """A check was made properly and its answer is no: a mismatch, or a network that does not fit."""

    exit_status = 1


def reason(error: BaseException) -> str:
    """The first sentence of another library's error, or its kind where it says nothing."""
    if isinstance(error, KeyError) and error.args:
        key = str(error.args[0]).removesuffix(" is not a file in the archive")
        return key if " " in key else f"{key} is missing"
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__).split(". ")[0]
