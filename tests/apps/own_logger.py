"""A logger class of the user's own, which reads what gunicorn documents of requests and responses."""

from __future__ import annotations

import datetime
import json
from typing import Any

from gunicorn.glogging import Logger


class OwnLogger(Logger):  # type: ignore[misc, unused-ignore]
    """Writes one line of JSON for each request into the error log."""

    def access(self, resp: Any, req: Any, environ: dict[str, Any], request_time: datetime.timedelta) -> None:
        """Note all that an access logger may look at."""
        noted = {
            "status": resp.status,
            "sent": resp.sent,
            "headers": [list(pair) for pair in resp.headers],
            "length": resp.response_length,
            "method": req.method,
            "uri": req.uri,
            "path": req.path,
            "query": req.query,
            "version": list(req.version),
            "request headers": [list(pair) for pair in req.headers],
            "scheme": req.scheme,
            "peer": req.remote_addr[0] if isinstance(req.remote_addr, tuple) else req.remote_addr,
            "script": environ.get("SCRIPT_NAME"),
            "protocol": environ["SERVER_PROTOCOL"],
            "time": type(request_time).__name__,
        }
        self.info("own logger: %s", json.dumps(noted, sort_keys=True))
