"""The same over TLS, with a certificate made for the test."""

import asyncio
import datetime
import ipaddress
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from runtime.pool import Pool
from runtime.port import Lost, Unreachable

Serve = Callable[..., Awaitable[Any]]
BODY = b"x" * 700_000


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a key and its own certificate for 127.0.0.1, good for an hour."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bursar test")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(minutes=5))
    builder = builder.not_valid_after(now + datetime.timedelta(hours=1))
    signed = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ) + signed.public_bytes(serialization.Encoding.PEM)
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    path.write_bytes(pem)
    return path


async def serve_tls(serve: Serve, certificate: Path, raw: bytes, *, hangs_up: bool = False) -> Any:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await reader.readuntil(b"\r\n\r\n{}")
            writer.write(raw)
            if hangs_up:
                return

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return await serve(script, ssl=context)


async def test_answers_come_over_one_kept_tls_connection(serve: Serve, certificate: Path) -> None:
    raw = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
    server = await serve_tls(serve, certificate, raw)
    trusted = ssl.create_default_context(cafile=str(certificate))
    pool = Pool(f"https://127.0.0.1:{server.port}", 2, 5.0, ssl=trusted)
    for _ in range(3):
        response = await pool.post("/", b"{}", b"")
        body = b""
        while data := await response.read_any():
            body += data
            await asyncio.sleep(0)
        assert body == BODY
        response.close()
    assert server.connections == 1
    async with asyncio.timeout(5):
        await pool.close()


async def test_an_answer_cut_short_over_tls_is_lost(serve: Serve, certificate: Path) -> None:
    server = await serve_tls(serve, certificate, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok", hangs_up=True)
    trusted = ssl.create_default_context(cafile=str(certificate))
    pool = Pool(f"https://127.0.0.1:{server.port}", 1, 5.0, ssl=trusted)
    response = await pool.post("/", b"{}", b"")
    assert await response.read_any() == b"ok"
    with pytest.raises(Lost):
        await response.read_any()
    response.close()
    await pool.close()


async def test_a_certificate_that_nobody_vouches_for_is_unreachable(serve: Serve, certificate: Path) -> None:
    server = await serve_tls(serve, certificate, b"never sent")
    pool = Pool(f"https://127.0.0.1:{server.port}", 1, 5.0)
    for _ in range(2):
        with pytest.raises(Unreachable, match="CERTIFICATE_VERIFY_FAILED"):
            await pool.post("/", b"{}", b"")
    await pool.close()
