"""Storage that does not answer, or takes no more: waiting for it, and stopping in order if it stays away.

An image or a table that is missing is one thing, a storage that is away another: only the first may be
held against the file. What passes within half a minute is waited for; after that the run stops with
exit code 75, and goes on where it was when it is started again.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import TypeVar

from core.errors import StoppedEarly

T = TypeVar("T")

#: Seconds between tries at a storage that does not answer. Clients of object stores have tries of their
#: own, so that a minute or two pass before it is given up.
WAITS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)

#: What operating systems say of storage that is away; file systems of object stores say the same.
_AWAY = frozenset(
    getattr(errno, name, None)
    for name in (
        *("EBUSY", "EREMOTEIO", "ESTALE", "ETIMEDOUT", "EHOSTDOWN", "EHOSTUNREACH", "ESHUTDOWN"),
        *("ENETDOWN", "ENETRESET", "ENETUNREACH", "ENOTCONN"),
    )
) - {None}

#: What they say of storage that is there and takes no more: full, over quota, read-only, damaged.
_HINDERED = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO})

#: Packages that talk to object stores, and words in the names of their errors about the connection.
_CLIENTS = ("aiobotocore.", "aiohttp.", "botocore.", "urllib3.")
_WORDS = ("Connect", "Disconnect", "HTTPClient", "Incomplete", "Payload", "Streaming", "Timeout")


def is_outage(error: BaseException) -> bool:
    """Whether an error says that a storage did not answer, rather than what it answered."""
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    if isinstance(error, OSError) and error.errno in _AWAY:
        return True
    if isinstance(error, OSError) and error.errno == errno.EIO:
        # Of a disk it is said of one damaged file; of an object store, of an answer out of order.
        return type(error.__cause__).__module__.startswith(_CLIENTS)
    return any(
        kind.__module__.startswith(_CLIENTS) and any(word in kind.__name__ for word in _WORDS)
        for kind in type(error).__mro__
    )


def patiently(action: Callable[[], T], where: str) -> T:
    """Do something with a storage, again and again while it does not answer.

    Args:
        action: What to do; it may be done twice.
        where: Path or URL, for the message.

    Returns:
        What the action returns.

    Raises:
        StoppedEarly: The storage stayed away.
    """
    for wait in (*WAITS, None):
        try:
            return action()
        except Exception as error:
            if not is_outage(error):
                raise
            if wait is None:
                raise StoppedEarly(
                    f"the storage of {where} does not answer ({_said(error)}); run again to resume "
                    "when it does"
                ) from None
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def writing(action: Callable[[], T], where: str) -> T:
    """As `patiently`; a storage that takes no more stops the run in order as well.

    Raises:
        StoppedEarly: The storage stayed away, is full, over quota, read-only or damaged.
    """
    try:
        return patiently(action, where)
    except OSError as error:
        if error.errno not in _HINDERED:
            raise
        raise StoppedEarly(
            f"{where} cannot be written ({_said(error)}); make room there, and run again to resume"
        ) from None


def _said(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
