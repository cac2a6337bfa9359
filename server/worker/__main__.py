"""One worker of `fada serve`, by the settings of its environment."""

from server import logs, traces
from server.errors import SetupError
from server.settings import Settings
from server.worker.worker import main

settings = Settings()  # type: ignore[call-arg]  # all have defaults
logs.configure(settings.log_format)
traces.configure("worker")
if settings.redis_url is None:
    raise SystemExit("fada: a worker needs FADA_REDIS_URL")
try:
    main(settings, settings.redis_url)
except SetupError as error:
    raise SystemExit(f"fada: {error}") from error
