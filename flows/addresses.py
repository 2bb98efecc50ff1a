"""Addresses as they are shown: without what may be a key."""

from __future__ import annotations

import re


def plain_url(text: str) -> str:
    """Return a URL without user, password, query and fragment, which may hold keys; other text as it is.

    Parameters
    ----------
    text
        Of a setting, or an address, before it is shown: reports are handed around.

    Returns
    -------
    str
        Scheme, host and path.
    """
    url = re.match(r"([A-Za-z][A-Za-z0-9+.-]*://)(?:[^/?#]*@)?([^?#]*)", text)
    return text if url is None else url[1] + url[2]
