"""What `fada verify` says: of marked, signed, changed and forged files."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from fada.cli import main
from media.errors import MediaError
from media.marks import tool_version
from media.signing import Credentials, load_credentials, sign
from media.verify import MarksReport, read_marks
from tests.media.certificates import SIGNER, SignerFiles, write_signer
from tests.media.test_marks import video
from tests.server.media_probe import boxes

READ_ELSEWHERE = """
import c2pa, sys
for path in sys.argv[1:]:
    with c2pa.Reader("video/mp4", open(path, "rb")) as reader:
        print(reader.get_validation_state())
"""


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> SignerFiles:
    return write_signer(tmp_path_factory.mktemp("signer"))


@pytest.fixture(scope="module")
def credentials(signer: SignerFiles) -> Credentials:
    return load_credentials(signer.certificates, signer.key)


def report(blob: bytes, anchors: str | None = None) -> MarksReport:
    return read_marks(io.BytesIO(blob), anchors)


def statuses(seen: MarksReport) -> list[tuple[str, str]]:
    return [(mark.name, mark.status) for mark in seen.marks]


def test_marks_that_nobody_signed_are_claims() -> None:
    seen = report(video()[1])
    assert (seen.verdict, seen.made_by_ai) == ("claimed, unsigned", True)
    assert statuses(seen) == [("XMP", "claimed"), ("comment", "claimed"), ("XMP", "claimed")]
    assert [mark.where for mark in seen.marks][::2] == ["uuid box", "1 of 1 keyframes"]
    assert {mark.tool for mark in seen.marks} == {f"fada {tool_version()}"}
    assert [mark.date for mark in seen.marks] == ["2026-08-02", "2026-08-02", ""]


def test_a_file_without_marks(tmp_path: Path) -> None:
    init, whole = video()
    plain = whole.replace(b"/digitalsourcetype/", b"/" + b"x" * 18)
    assert (report(plain).verdict, report(plain).made_by_ai) == ("unmarked", False)
    camera = whole.replace(b"trainedAlgorithmicMedia", b"digitalCapture" + b" " * 9)
    assert (report(camera).verdict, report(camera).made_by_ai) == ("claimed, unsigned", False)
    for broken in (b"", b"text", init[:100]):
        with pytest.raises(MediaError, match="no video"):
            report(broken)


def test_what_a_file_says_cannot_control_a_terminal() -> None:
    forged = video()[1].replace(b"fada ", b"\x1b[2J ")
    (mark, *_) = report(forged).marks
    assert (mark.name, mark.tool) == ("comment", f"?[2J {tool_version()}")


def test_a_signed_file_holds_and_plays_on(signer: SignerFiles, credentials: Credentials) -> None:
    init, whole = video()
    signed = sign(whole, credentials)
    assert [kind for kind, _ in boxes(signed)][:4] == ["ftyp", "uuid", "uuid", "moov"]
    assert signed.endswith(whole[len(init) :])  # nothing behind the init segment has moved apart
    seen = report(signed)
    assert (seen.verdict, seen.made_by_ai) == ("signed", True)
    assert statuses(seen) == [("XMP", "covered"), ("comment", "covered"), ("XMP", "covered"),
                              ("C2PA", "valid")]  # fmt: skip
    assert seen.marks[-1].tool == f"fada {tool_version()}"
    assert SIGNER in seen.marks[-1].detail
    trusted = report(signed, signer.anchor.read_text())
    assert trusted.marks[-1].status == "trusted"


def test_one_flipped_bit_of_a_frame_breaks_it(credentials: Credentials, tmp_path: Path) -> None:
    signed = sign(video()[1], credentials)
    changed = bytearray(signed)
    changed[-200] ^= 1
    seen = report(bytes(changed))
    assert seen.verdict == "broken"
    assert ("C2PA", "broken") in statuses(seen) and ("XMP", "covered") not in statuses(seen)
    assert "bmffHash.mismatch" in seen.marks[-1].detail
    paths = [tmp_path / "signed.mp4", tmp_path / "changed.mp4"]
    for path, blob in zip(paths, (signed, changed), strict=True):
        path.write_bytes(blob)
    command = [sys.executable, "-W", "ignore", "-c", READ_ELSEWHERE, *paths]
    seen_there = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert seen_there.split() == ["Valid", "Invalid"]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(video()[1])
    for arguments in (["verify", str(path)], ["verify", "--json", str(path)]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0
    text = capsys.readouterr().out
    table, document = text[: text.index("{")], text[text.index("{") :]
    assert "trainedAlgorithmicMedia" in table
    assert table.splitlines()[-1] == f"{path}: claimed, unsigned; says that AI made it"
    assert json.loads(document)["marks"][0]["source_type"] == "trainedAlgorithmicMedia"
    path.write_bytes(video()[1].replace(b"/digitalsourcetype/", b"/" + b"x" * 18))
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(path)])
    assert ended.value.code == 1


def test_credentials_that_cannot_sign_are_refused(signer: SignerFiles, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("expired", "other", "server")]
    for folder in folders:
        folder.mkdir()
    expired = write_signer(folders[0], ends=timedelta(days=-1))
    other = write_signer(folders[1])
    server = write_signer(folders[2], purpose=ExtendedKeyUsageOID.SERVER_AUTH)
    for certificates, key, why in (
        (expired.certificates, expired.key, "is valid from"),
        (signer.certificates, other.key, "is not the key of the certificate"),
        (server.certificates, server.key, "C2PA does not accept the certificate"),
        (signer.key, signer.key, "holds no certificates in PEM"),
        (signer.certificates, signer.certificates, "holds no private key in PEM"),
        (tmp_path / "none.pem", signer.key, "cannot read"),
    ):
        with pytest.raises(ValueError, match=why) as refused:
            load_credentials(certificates, key)
        assert "\n" not in str(refused.value)
