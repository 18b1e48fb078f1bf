"""The bytes of an image's file; or, where there are none, whether that is data or a failure."""

from engine.errors import UnavailableImageError, UnreadableImageError
from engine.reading import has_siblings, is_no_file, read_patiently
from stages.records import ImageStatus


def read_file(uri: str) -> bytes:
    """
    Raises:
        UnreadableImageError: no file is there while others of its folder are, or the name is none.
        UnavailableImageError: storage refuses it, or nothing at all is left of its folder.
    """
    try:
        return read_patiently(uri)
    except FileNotFoundError as error:
        if has_siblings(uri):
            raise UnreadableImageError(ImageStatus.UNREADABLE, "no such file") from error
        raise UnavailableImageError(
            uri, "its folder is gone, or empty: is its disk mounted?"
        ) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        if is_no_file(error):
            raise UnreadableImageError(
                ImageStatus.UNREADABLE, f"cannot be read: {reason}"
            ) from error
        raise UnavailableImageError(uri, reason) from error
