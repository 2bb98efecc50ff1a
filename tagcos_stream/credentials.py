"""Keep keys and tokens out of what is stored and shown: refused in addresses, blanked in the messages of other libraries."""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit

from tagcos_stream.types import UserError

SECRET_NAME = re.compile(r"SECRET|TOKEN|PASSWORD|CREDENTIAL|ACCOUNT_KEY|ACCESS_KEY|SAS_KEY|API_KEY", re.IGNORECASE)
USER = re.compile(r"(?<=://)[^/\s@:]*:[^/\s]*@")  # of an address, with a password
MIN_LENGTH = 8  # characters: shorter values of variables are too common to blank in a text
USER_IS_A_PLACE = ("abfs", "abfss", "hf")  # schemes in which the part before an @ names a container or repository
_SCHEME = "[A-Za-z][A-Za-z0-9+.-]*://"
_PLACES = "|".join("".join(f"[{letter.upper()}{letter}]" for letter in scheme) for scheme in USER_IS_A_PLACE)
# what `refuse_credentials` refuses, for those who check by patterns: without flags, which JSON schema has not
WITH_KEY = rf"^[\x00-\x20]*(?:(?!(?:{_PLACES})://){_SCHEME}[^/?#]*@|{_SCHEME}(?:[^/?#]*:[^/?#]*@|[\s\S]*[?&][\w.-]+=))"


def refuse_credentials(url: str) -> None:
    """Refuse an address that holds a key, since addresses are stored in the catalog and shown in logs and reports.

    Parameters
    ----------
    url
        Address of a source or root.

    Raises
    ------
    UserError
        It has a password, a user name where the scheme has none, or a query such as a signature. The message does not
        repeat it.
    """
    parts = urlsplit(url)
    if not parts.scheme or "://" not in url:
        return
    user, separator, host = parts.netloc.rpartition("@")
    named = separator and (":" in user or parts.scheme not in USER_IS_A_PLACE)
    if named or re.search(r"[?&][\w.-]+=", url):
        raise UserError(
            f"{parts.scheme}://{host}: the address holds credentials, which would be stored and shown with it; give the "
            "address without them and set the store's environment variables, such as AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, AZURE_STORAGE_SAS_KEY or GOOGLE_APPLICATION_CREDENTIALS"
        )


def redact(text: str) -> str:
    """Blank the values of environment variables that hold secrets, and users with passwords in addresses.

    Parameters
    ----------
    text
        Message of another library, before it is shown or recorded.

    Returns
    -------
    str
        The message with ``***`` for every value of at least eight characters of a variable whose name says that it is secret (a
        key, token or password), and for ``user:password`` before the host of an address.
    """
    values = {value for name, value in os.environ.items() if SECRET_NAME.search(name) and len(value) >= MIN_LENGTH}
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, "***")
    return USER.sub("***@", text)
