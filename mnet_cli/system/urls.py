"""URLs of data sets: what is one, and credentials that must not be in it."""

import re
from urllib.parse import SplitResult, parse_qsl, urlsplit, urlunsplit

from mnet_cli.errors import UsageError
from mnet_cli.system.text import printable

# What the names of keys and signatures in the query of a URL end with.
SECRETS = (
    "signature", "sig", "token", "key", "keyid", "credential", "secret", "password", "passwd",
    "pwd", "auth",
)  # fmt: skip
CHAINED = re.compile(r"^\w+::|::\w+://")  # two file systems of fsspec, as zip://a::https://b


def is_url(place: str) -> bool:
    """Whether a place is a URL rather than a path; a drive of Windows is no URL."""
    return "://" in place


def refuse_credentials(url: str, where: str) -> None:
    """Refuse a URL with credentials in it: they would be written into recipes and reports.

    No error repeats the credentials.

    Args:
        url: A URL, or a path, which has none.
        where: The option or key that gave it.

    Raises:
        UsageError: It has a user name, a password, or a key or signature in its query; or it is
            no single URL of the usual form, so that credentials could not be found.
    """
    if not is_url(url):
        return
    if CHAINED.search(url):
        raise UsageError(
            where, "two URLs joined by :: cannot be read", next_step="Give the URL of the files"
        )
    try:
        parts = urlsplit(url)
        has_user = bool(parts.username or parts.password)
        _ = parts.port  # no number where a password with a slash in it follows the colon
    except ValueError as error:
        # The words of the error may repeat the URL.
        raise UsageError(where, "not a valid URL", next_step="Correct the URL") from error
    pairs = "&".join((parts.query, parts.fragment)).replace(";", "&")
    names = [name.lower() for name, _ in parse_qsl(pairs, keep_blank_values=True)]
    if has_user or any(name.endswith(SECRETS) for name in names):
        raise UsageError(
            where,
            f"the URL {printable(_plain(parts))} has credentials in it, which would be stored in "
            "recipes",
            next_step="Give them as fsspec's package for that store expects, such as in "
            "environment variables",
        )


def without_credentials(address: str) -> str:
    """A path as it is, or a URL without user, password and query."""
    return _plain(urlsplit(address)) if is_url(address) else address


def _plain(parts: SplitResult) -> str:
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
