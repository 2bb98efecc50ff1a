"""What an object store or the model hub refuses, in one line, and whether it is worth another try later."""

from __future__ import annotations

import re
from http import HTTPStatus

from tagcos_stream.credentials import redact
from tagcos_stream.types import TransientError, UserError

# obstore has a class of error for a few answers only, and none for those to a listing: the rest say the status in their text
ANSWER = re.compile(r"Server returned non-2xx status code: (\d{3})|Received redirect without LOCATION")
# of the answers that blame the client
MAY_PASS = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS)


def store_error(failed: str, error: Exception, remedy: str, unanswered: type[Exception]) -> UserError:
    """Say in one line what a store refused, after its library's own retries.

    Parameters
    ----------
    failed
        What could not be done, with the address.
    error
        Of the store's library.
    remedy
        What to do about it.
    unanswered
        The library's error for a lost connection, which may also stand for answers that it does not tell apart.

    Returns
    -------
    UserError
        A TransientError where the network failed or the server was busy or at fault.
    """
    kind = TransientError if _may_pass(error, unanswered) else UserError
    reason = redact((str(error).strip().splitlines() or [type(error).__name__])[0])
    return kind(f"{failed}: {reason}; {remedy}")


def _may_pass(error: Exception, unanswered: type[Exception]) -> bool:
    response = getattr(error, "response", None)  # of the hub's errors for an answer
    if response is not None:
        status = int(response.status_code)
    elif (answer := ANSWER.search(str(error))) is not None:
        status = int(answer[1] or HTTPStatus.MOVED_PERMANENTLY)
    else:
        return isinstance(error, unanswered)
    return status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in MAY_PASS
