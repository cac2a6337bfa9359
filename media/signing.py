"""C2PA manifests of finished videos: sign one, read one. Needs the extra ``c2pa``."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from media.boxes import box
from media.marks import AI_GENERATED, tool_version

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

_CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
# Nothing that a file names is fetched, and no settings of this machine play a part.
_READING = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}


@dataclass(frozen=True)
class Credentials:
    """A signer's ``certificates`` (PEM, its own first) with their ``key`` (PEM).

    ``algorithm`` is one of C2PA's names; ``timestamps`` the URL of a time stamp authority.
    """

    certificates: str
    key: str
    algorithm: str
    timestamps: str | None = None


@dataclass(frozen=True)
class SignedManifest:
    """What a file's C2PA manifest says, and whether it holds.

    ``state``: ``invalid``, ``valid``, or ``trusted`` where the signer's certificate leads to one
    of the given anchors. ``errors`` are C2PA's codes for what does not hold. ``signed`` is the time
    of a time stamp authority.
    """

    state: str
    source_type: str
    tool: str
    signer: str
    signed: str
    errors: tuple[str, ...]


def load_credentials(
    certificates: Path, key: Path, *, timestamps: str | None = None
) -> Credentials:
    """From two PEM files. Raises ``ValueError`` for any with which no valid manifest can be made:
    unreadable, expired, of another key, or not for signing."""
    from cryptography.x509 import load_pem_x509_certificates

    chain_pem, key_pem = (_read(path) for path in (certificates, key))
    try:
        chain = load_pem_x509_certificates(chain_pem)
    except ValueError as error:
        raise ValueError(f"{certificates} holds no certificates in PEM") from error
    _check_dates(chain, certificates)
    algorithm = _algorithm(key_pem, chain[0], key)
    for one, issuer in pairwise(chain):
        try:
            one.verify_directly_issued_by(issuer)
        except Exception as error:
            raise ValueError(f"{certificates}: a certificate is not issued by the next") from error
    credentials = Credentials(chain_pem.decode(), key_pem.decode(), algorithm)
    _try_out(credentials, certificates)
    return Credentials(credentials.certificates, credentials.key, algorithm, timestamps)


def sign(video: bytes, credentials: Credentials) -> bytes:
    """See `sign_file`."""
    signed = io.BytesIO()
    sign_file(io.BytesIO(video), signed, credentials)
    return signed.getvalue()


def sign_file(video: BinaryIO, signed: BinaryIO, credentials: Credentials) -> None:
    """Write ``video``, a finished MP4, with a manifest between ``ftyp`` and the rest.

    The rest is unchanged. The manifest covers it all, so no bit of it can change unnoticed. Raises
    ``RuntimeError`` where it cannot be signed, as when the time stamp authority does not answer.
    """
    c2pa = library()
    action = {"action": "c2pa.created", "digitalSourceType": AI_GENERATED}
    definition = {
        "claim_generator_info": [{"name": "fada", "version": tool_version()}],
        "format": "video/mp4",
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [action]}}],
    }
    url = credentials.timestamps
    try:
        info = c2pa.C2paSignerInfo(
            credentials.algorithm.encode(),
            credentials.certificates.encode(),
            credentials.key.encode(),
            None if url is None else url.encode(),
        )
        with c2pa.Signer.from_info(info) as signer, c2pa.Builder(definition) as builder:
            builder.sign(signer, "video/mp4", video, signed)
    except c2pa.C2paError as error:
        raise RuntimeError(f"the video could not be signed: {error}") from error


def read_manifest(video: BinaryIO, anchors: str | None = None) -> SignedManifest | None:
    """The manifest of an MP4, checked against it; ``None`` without one.

    ``anchors``: certificates (PEM) whose signers are trusted. Raises ``ModuleNotFoundError``
    without the extra ``c2pa``.
    """
    c2pa = library()
    settings: dict[str, Any] = dict(_READING)
    if anchors is not None:
        settings["trust"] = {"user_anchors": anchors}
    try:
        with c2pa.Context.from_dict(settings) as context:
            reader = c2pa.Reader.try_create("video/mp4", video, context=context)
            if reader is None:
                return None
            with reader:
                return _manifest(json.loads(reader.json()))
    except c2pa.C2paError as error:
        return SignedManifest("invalid", "", "", "", "", (str(error),))


def _manifest(document: Mapping[str, Any]) -> SignedManifest:
    active = document["manifests"][document["active_manifest"]]
    results = document.get("validation_results", {}).get("activeManifest", {})
    actions = [
        action
        for assertion in active.get("assertions", [])
        if assertion["label"].startswith("c2pa.actions")
        for action in assertion["data"]["actions"]
    ]
    sources = [a["digitalSourceType"] for a in actions if a.get("digitalSourceType")]
    tool: Mapping[str, Any] = next(iter(active.get("claim_generator_info", [])), {})
    signature = active.get("signature_info", {})
    return SignedManifest(
        state=document["validation_state"].lower(),
        source_type=sources[0] if sources else "",
        tool=" ".join(str(tool[key]) for key in ("name", "version") if key in tool),
        signer=", ".join(signature[k] for k in ("common_name", "issuer") if signature.get(k)),
        signed=signature.get("time") or "",
        errors=tuple(
            failure["code"]
            for failure in results.get("failure", [])
            if failure["code"] != "signingCredential.untrusted"
        ),
    )


def library() -> Any:
    """The module ``c2pa``. Raises ``ModuleNotFoundError`` without the extra ``c2pa``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import c2pa
    return c2pa


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error


def _check_dates(chain: list[Certificate], path: Path) -> None:
    now = datetime.now(UTC)
    for one in chain:
        if not one.not_valid_before_utc <= now <= one.not_valid_after_utc:
            raise ValueError(
                f"{path}: the certificate of {one.subject.rfc4514_string()} is valid from "
                f"{one.not_valid_before_utc:%Y-%m-%d} to {one.not_valid_after_utc:%Y-%m-%d}"
            )


def _algorithm(key_pem: bytes, certificate: Certificate, path: Path) -> str:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(key_pem, password=None)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} holds no private key in PEM without a password") from error
    if key.public_key() != certificate.public_key():
        raise ValueError(
            f"{path} is not the key of the certificate of {certificate.subject.rfc4514_string()}"
        )
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in _CURVES:
        return _CURVES[key.curve.name]
    if isinstance(key, rsa.RSAPrivateKey):
        return "ps256"
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    raise ValueError(f"{path} is a key of a kind that C2PA does not allow")


def _try_out(credentials: Credentials, path: Path) -> None:
    """Sign a file without content: C2PA has rules of its own for certificates."""
    empty = box(b"ftyp", b"iso6" + bytes(4) + b"iso6") + box(b"moov") + box(b"mdat", b"\0")
    try:
        manifest = read_manifest(io.BytesIO(sign(empty, credentials)))
    except RuntimeError as error:
        raise ValueError(f"{path}: C2PA does not accept the certificate: {error}") from error
    if manifest is None or manifest.state == "invalid":
        why = "no manifest was made" if manifest is None else ", ".join(manifest.errors)
        raise ValueError(f"{path}: C2PA does not accept the certificate: {why}")
