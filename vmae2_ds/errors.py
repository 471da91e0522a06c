"""What a user can fix: each error is one readable line; the command line turns it into an exit code."""

EXIT_OK = 0
EXIT_USER_ERROR = 2
"""A bad command, config, manifest or checkpoint: nothing was trained."""
EXIT_NOT_SAVED = 74
"""Checkpoints could not be written: the run stopped, and the newest whole one is older (EX_IOERR of sysexits.h)."""
EXIT_PREEMPTED = 75
"""A signal or the time limit: the step was finished and saved; start the same command again (EX_TEMPFAIL of sysexits.h)."""
EXIT_DIVERGED = 76
"""Too many non-finite steps, spikes or rollbacks: the run stopped with a checkpoint."""
EXIT_BAD_DATA = 77
"""Too many videos could not be read, or a rank's loader failed: the run stopped with a checkpoint."""
EXIT_HUNG = 78
"""No step was finished for too long, or a rank is gone: nothing could be saved; start the same command again."""


class Vmae2Error(Exception):
    """Base of everything that is reported as one line, without a traceback."""

    exit_code = EXIT_USER_ERROR


class ConfigError(Vmae2Error):
    """A config, command line or ds_config that cannot be run as asked."""


class DataError(Vmae2Error):
    """A manifest or data set that cannot be used; names the file and line."""


class VideoError(Vmae2Error):
    """One video that cannot be used; the loader skips and counts it. The text is the reason, without the path."""


class CheckpointError(Vmae2Error):
    """A checkpoint that is missing, torn, or does not match the model."""


class AgreedStop(Vmae2Error):
    """All ranks stop together, after a checkpoint."""


class Preempted(AgreedStop):
    """The run was asked to stop, or its time is over."""

    exit_code = EXIT_PREEMPTED


class Diverged(AgreedStop):
    """The loss or gradient stayed non-finite, or spiked, past the limit."""

    exit_code = EXIT_DIVERGED


class TooManyBadFiles(AgreedStop):
    """The share of unreadable videos passed the limit."""

    exit_code = EXIT_BAD_DATA


class SaveFailed(AgreedStop):
    """The disk refused a checkpoint: one costs that save, several in a row or the last one stop the run."""

    exit_code = EXIT_NOT_SAVED


class LoaderFailed(AgreedStop):
    """One rank's loader could not go on."""

    exit_code = EXIT_BAD_DATA


class RankLost(Vmae2Error):
    """Another rank is gone; this one cannot go on alone."""

    exit_code = EXIT_HUNG
