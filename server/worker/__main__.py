"""One worker of `fada serve`, by the settings of its environment."""

from server.worker import memory

memory.pause_gc()  # importing makes objects that stay

from server import logs, traces  # noqa: E402
from server.errors import SetupError  # noqa: E402
from server.settings import Settings  # noqa: E402
from server.worker.worker import main  # noqa: E402

settings = Settings()  # type: ignore[call-arg]  # all have defaults
logs.configure(settings.log_format)
traces.configure("worker")
if settings.redis_url is None:
    raise SystemExit("fada: a worker needs FADA_REDIS_URL")
try:
    main(settings, settings.redis_url)
except SetupError as error:
    raise SystemExit(f"fada: {error}") from error
