"""URLs that carry a password or a signature are refused, since URLs are written into runs and logs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from core.errors import ConfigError

_PASSWORD = re.compile(r"^[a-z][\w+.:-]*://[^/?#]*:[^/?#]*@", re.IGNORECASE)
_SIGNED = re.compile(
    r"^[a-z][\w+.:-]*://.*[?&](X-Amz-Signature|X-Amz-Security-Token|X-Goog-Signature|Signature|sig|"
    r"(access_|api_)?(token|key))=",
    re.IGNORECASE,
)


def refuse_secret(url: str, where: str) -> None:
    """Refuse a URL that carries a secret; the message does not repeat it.

    Args:
        url: A path, a URL or any other text.
        where: What the URL was given as.

    Raises:
        ConfigError: It has a password before its host, or a signature or token behind it.
    """
    if _PASSWORD.match(url) or _SIGNED.match(url):
        raise ConfigError(
            f"{where} is a URL with a password, signature or token in it, which would be written into "
            "the run; leave it out, and give credentials in the environment (AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, AWS_PROFILE) or by the machine's role"
        )


def refuse_secrets(data: Any) -> None:
    """Refuse any such URL in a configuration, before its values are told or written anywhere.

    Raises:
        ConfigError: A value of the configuration carries a secret.
    """
    for keys, text in _texts(data):
        refuse_secret(text, keys)


def _texts(data: Any, keys: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(data, str):
        yield keys, data
    elif isinstance(data, dict):
        for key, value in data.items():
            yield from _texts(value, f"{keys}.{key}" if keys else str(key))
    elif isinstance(data, list):
        for number, value in enumerate(data):
            yield from _texts(value, f"{keys}.{number}")
