"""URLs of data sets: what is one, and credentials that must not be in it."""

from urllib.parse import parse_qsl, urlsplit, urlunsplit

from mnet_cli.errors import UsageError
from mnet_cli.system.text import printable

# What the names of keys and signatures in the query of a URL end with.
SECRETS = ("signature", "sig", "token", "key", "keyid", "credential", "secret", "password")


def is_url(place: str) -> bool:
    """Whether a place is a URL rather than a path; a drive of Windows is no URL."""
    return "://" in place


def refuse_credentials(url: str, where: str) -> None:
    """Refuse a URL with credentials in it: they would be written into recipes and reports.

    Args:
        url: A URL, or a path, which has none.
        where: The option or key that gave it.

    Raises:
        UsageError: It has a user name, a password, or a key or signature in its query.
    """
    if not is_url(url):
        return
    parts = urlsplit(url)
    names = [name.lower() for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
    secret = any(name.endswith(SECRETS) for name in names)
    if parts.username or parts.password or secret:
        shown = urlunsplit((parts.scheme, parts.hostname or "", parts.path, "", ""))
        raise UsageError(
            where,
            f"the URL {printable(shown)} has credentials in it, which would be stored in recipes",
            next_step="Give them as fsspec's package for that store expects, such as in "
            "environment variables",
        )
