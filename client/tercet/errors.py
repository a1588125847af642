"""Every exception Tercet raises on purpose; each message names the cause and the cure.

The tree::

    TercetError
    ├── InputError              the caller's data
    │   ├── PictureError        unreadable, too large or unsupported picture
    │   ├── TextError           empty, too long or malformed text
    │   └── DatasetError        files of a data set missing or not as its publishers made them
    ├── ServerError             talking to Triton
    │   ├── ServerUnreachable   nobody answers at the address
    │   ├── ServerOverloaded    UNAVAILABLE after every retry
    │   ├── RequestTimeout      no answer within the client's timeout
    │   ├── ModelMissing        the server lacks or has not loaded the model
    │   └── InferenceError      the model refused or failed
    ├── ServerStartError        the embedded Triton could not start
    ├── GalleryIndexError       the index on disk
    │   ├── IndexDamaged        missing, truncated or altered files
    │   └── IndexMismatch       built by another encoder
    └── ExportError             from checkpoint to model repository
        ├── LineupError         unknown or inconsistent lineup
        ├── CheckpointError     wrong, damaged or unsafe checkpoint
        └── ValidationError     the exported graph differs from the network
"""


class TercetError(Exception):
    """Base of every exception that Tercet raises on purpose."""


class InputError(TercetError):
    """The caller's data cannot be used."""


class PictureError(InputError):
    """A picture is unreadable, too large or of an unsupported kind."""


class TextError(InputError):
    """A text is empty, too long or malformed."""


class DatasetError(InputError):
    """A data set's files are missing or not as its publishers made them."""


class ServerError(TercetError):
    """A request to the server failed."""


class ServerUnreachable(ServerError):
    """Nobody answers at the address."""


class ServerOverloaded(ServerError):
    """The server was UNAVAILABLE after every retry."""


class RequestTimeout(ServerError):
    """The server gave no answer within the client's timeout."""


class ModelMissing(ServerError):
    """The server does not have the model, or has not loaded it."""


class InferenceError(ServerError):
    """The model refused the request or failed on it."""


class ServerStartError(TercetError):
    """The embedded Triton could not start."""


class GalleryIndexError(TercetError):
    """The index on disk cannot be used."""


class IndexDamaged(GalleryIndexError):
    """Files of the index are missing, truncated or altered."""


class IndexMismatch(GalleryIndexError):
    """The index was built by another encoder than the one asked."""


class ExportError(TercetError):
    """Something failed between a checkpoint and the model repository."""


class LineupError(ExportError):
    """The lineup is unknown or inconsistent."""


class CheckpointError(ExportError):
    """The checkpoint is wrong, damaged or unsafe."""


class ValidationError(ExportError):
    """The exported graph does not compute what the network computes."""
