"""Where the ledger is kept: a directory, or a SQLAlchemy URL that several hosts share."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

# SQLAlchemy 2.1 would take drivers that backendops does not come with.
_DRIVERS: Final = {
    "postgresql": "postgresql+psycopg2",
    "postgres": "postgresql+psycopg2",
    "mysql": "mysql+pymysql",
    "mariadb": "mariadb+pymysql",
}
_SYSTEM: Final = Path("/var/lib/backendops")


def state_from(text: str, folder: Path) -> str:
    """The ledger's directory, absolute, or its URL; a relative directory lies beside the policy.

    Raises ValueError where it is neither.
    """
    if "://" in text:
        return _url(text)
    if not text.strip() or "\0" in text:
        raise ValueError("state is empty: name a directory, or leave it out")
    # os.path, here and below: pathlib raises for a name that is too long or a home that is unknown.
    path = (folder / os.path.expanduser(text)).absolute()  # noqa: PTH111 - see above
    if os.path.exists(path) and not os.path.isdir(path):  # noqa: PTH110, PTH112 - see above
        raise ValueError(f"{str(path)!r} is a file: state is a directory, or a SQLAlchemy URL")
    return str(path)


def _url(text: str) -> str:
    text = text.removeprefix("db+")
    try:
        url = make_url(text)
        if "+" not in url.drivername:
            url = url.set(drivername=_DRIVERS.get(url.drivername, url.drivername))
        url.get_dialect().import_dbapi()
    except NoSuchModuleError:
        scheme = text.partition("://")[0]
        raise ValueError(
            f"state cannot be kept behind {scheme}://: name a directory, or a SQLAlchemy URL such as "
            "postgresql+psycopg2://user@host/database"
        ) from None
    except ImportError as error:
        raise ValueError(
            f"the driver of state is not installed: install {error.name} beside backendops, or name a directory"
        ) from None
    except (ArgumentError, ValueError):
        raise ValueError("state is not a URL that SQLAlchemy can read: check its port and its @") from None
    return url.render_as_string(hide_password=False)


def default_state(environment: Mapping[str, str] | None = None) -> str:
    """$STATE_DIRECTORY (systemd), /var/lib/backendops where that can be written, else the home directory's."""
    environment = os.environ if environment is None else environment
    # systemd lists several with colons between them; the first is the unit's own.
    if given := environment.get("STATE_DIRECTORY", "").partition(":")[0]:
        return given
    nearest = _SYSTEM if _SYSTEM.exists() else _SYSTEM.parent
    if os.access(nearest, os.W_OK | os.X_OK):
        return str(_SYSTEM)
    home = environment.get("HOME") or os.path.expanduser("~")  # noqa: PTH111 - as above
    return str(Path(home) / ".local/state/backendops")
