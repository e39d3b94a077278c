"""What MongoDB's errors mean for people: what failed, where, and what to do about it."""

from __future__ import annotations

from pymongo.errors import ConnectionFailure, OperationFailure, PyMongoError, ServerSelectionTimeoutError

_AUTHENTICATION_FAILED = 18
_UNAUTHORIZED = 13
_LONGEST = 300


def is_outage(error: PyMongoError) -> bool:
    """Whether the server or the way to it is at fault, and not the caller."""
    return error.timeout or isinstance(error, ConnectionFailure | OperationFailure)


def explain(error: PyMongoError, address: str) -> str:
    """One or two sentences on an error of the servers at `address`."""
    detail = str(error).split(", Timeout:")[0].split(", full error:")[0].strip()[:_LONGEST]
    return f"the MongoDB at {address}: {_advice(error)}: {detail}"


def _advice(error: PyMongoError) -> str:
    if isinstance(error, OperationFailure) and error.code in (_AUTHENTICATION_FAILED, _UNAUTHORIZED):
        return "it refuses this user; look at user, password and authSource in MONGODB_URL or MONGODB_CONFIG"
    if isinstance(error, ServerSelectionTimeoutError):
        return "no server there takes writes; start it, or correct MONGODB_URL or MONGODB_CONFIG"
    if error.timeout:
        return "it did not answer in time; look at its load, or give it longer with MONGODB_TIMEOUT_SECONDS"
    if isinstance(error, ConnectionFailure):
        return "the connection was lost; it may be restarting or electing another primary"
    return "it refused"
