"""What settings say of a video's encoding and marks: its encoder, a visible label, a signature."""

from __future__ import annotations

import io
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from media.encoders import DEFAULT_ENCODING, Encoding, check_encoder, fastest_encoder
from media.label import LabelText
from server.errors import ServiceError, SetupError
from server.settings import Settings

if TYPE_CHECKING:
    from media.signing import Credentials


log = logging.getLogger("fada.worker")


@dataclass(frozen=True)
class Marks:
    """Finished videos are signed with ``credentials``."""

    encoding: Encoding = DEFAULT_ENCODING
    credentials: Credentials | None = None

    def signed(self, video: bytes) -> bytes:
        """A finished ``video`` with its manifest, or as it is without credentials; blocks.

        Raises `ServiceError` ``internal_error`` where it cannot be signed.
        """
        if self.credentials is None:
            return video
        signed = io.BytesIO()
        self.sign(io.BytesIO(video), signed)
        return signed.getvalue()

    def sign(self, video: BinaryIO, signed: BinaryIO) -> None:
        """Write a finished ``video`` with its manifest; blocks. Needs credentials."""
        assert self.credentials is not None
        from media.signing import sign_file

        try:
            sign_file(video, signed, self.credentials)
        except RuntimeError as error:
            log.error("%s", error)
            raise ServiceError("internal_error", "the video could not be signed") from error

    def sign_file(self, path: Path) -> None:
        """Replace a finished file's content by its signed content."""
        if self.credentials is not None:
            path.write_bytes(self.signed(path.read_bytes()))


NO_MARKS = Marks()


def load_marks(settings: Settings) -> Marks:
    """Raises `SetupError` for an encoder, label or credentials that cannot be used."""
    try:
        label = None if settings.label is None else LabelText(settings.label, settings.label_font)
    except ValueError as error:
        raise SetupError(f"setting FADA_LABEL: {error}") from error
    try:
        if settings.encoder not in ("auto", DEFAULT_ENCODING.encoder):
            check_encoder(settings.encoder)
    except ValueError as error:
        raise SetupError(f"setting FADA_ENCODER: {error}") from error
    encoder = fastest_encoder() if settings.encoder == "auto" else settings.encoder
    encoding = Encoding(encoder, label)
    certificates, key = settings.c2pa_cert, settings.c2pa_key
    if certificates is None and key is None:
        return Marks(encoding)
    if certificates is None or key is None:
        raise SetupError("settings FADA_C2PA_CERT and FADA_C2PA_KEY: expected both or none")
    from media.signing import load_credentials

    try:
        credentials = load_credentials(certificates, key, timestamps=settings.c2pa_timestamps)
    except ModuleNotFoundError as error:
        raise SetupError(
            f"setting FADA_C2PA_CERT needs the extra \"c2pa\": pip install 'fada[c2pa]' "
            f"({error.name} is not installed)"
        ) from error
    except ValueError as error:
        raise SetupError(f"settings FADA_C2PA_CERT and FADA_C2PA_KEY: {error}") from error
    return Marks(encoding, credentials)
