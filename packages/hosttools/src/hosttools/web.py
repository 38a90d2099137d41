"""HTTP to the platform's own addresses, which are never behind a proxy, whatever the environment says."""

import base64
import contextlib
import http.client
import json
import urllib.error
import urllib.request

import hosttools
from hosttools import files
from hosttools.masking import quote

OPEN = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
PROMETHEUS_PASSWORD = "/etc/prometheus/secrets/password"  # noqa: S105 - a file


def ask(url: str, headers: dict[str, str] | None = None, timeout: float | None = None) -> tuple[int, str]:
    """Return status and body of a GET; 0 and why when nobody answers, or no HTTP."""
    try:
        request = urllib.request.Request(url, headers=headers or {})
        with OPEN(request, timeout=timeout or hosttools.TIMEOUT) as answer:
            return answer.status, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(errors="replace")
    except (OSError, ValueError, http.client.HTTPException) as error:
        return 0, str(error)


def prometheus_login() -> dict[str, str]:
    """Return the headers that Prometheus and Alertmanager of this host ask for."""
    login = f"admin:{files.read(PROMETHEUS_PASSWORD).strip()}"
    return {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}


def words(status: int, body: str) -> str:
    """Return what an answer says: its status and, of JSON, its sentence."""
    with contextlib.suppress(ValueError, AttributeError):
        told = json.loads(body)
        body = str(told.get("detail") or told.get("message") or told.get("error") or body)
    return quote(f"{status or 'no connection'}: {body}" if body else f"{status or 'no connection'}")
