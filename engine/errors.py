"""What goes wrong for reasons outside the program: a class for each thing one can do about it."""


class EngineError(Exception):
    """Input, files or machines do not allow what was asked; the message says what to do."""


class ConfigError(EngineError):
    """A configuration is malformed, or differs from the one a run was started with."""


class StorageError(EngineError):
    """Storage refused a read or a write: full, read-only, missing. Try again once it is mended."""


class CorruptFileError(EngineError):
    """A file exists but its bytes are not what its name or its manifest promises."""


class TooLargeError(EngineError):
    """More than is kept of one thing: some of it must go first."""


class StaleLeaseError(EngineError):
    """A lease has expired or passed to somebody else: the task must be claimed again."""


class ImageError(EngineError):
    """There are no pixels of an image: which of the two below says whose fault that is."""


class UnreadableImageError(ImageError):
    """An image's bytes cannot become pixels. Data, not a failure: its record says so."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(status, reason)  # both: it goes from one process to another
        self.status = status
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class UnavailableImageError(ImageError):
    """An image's bytes cannot be had, as those of the others on its disk probably cannot: a failure
    of storage, to be tried again."""

    def __init__(self, uri: str, reason: str) -> None:
        super().__init__(uri, reason)
        self.uri = uri
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.uri} cannot be read: {self.reason}"


def fault(path: str, error: Exception) -> str:
    """One line that names the file, or its folder."""
    line = " ".join(str(error).split())
    return line if path in line else f"{path}: {line}"
