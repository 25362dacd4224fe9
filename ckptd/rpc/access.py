"""Who may talk to a coordinator, and how its callers reach it: shared token and TLS (PROTOCOLS 5).

One interceptor lets calls in, one helper makes them. Every call carries the token, whichever it is: an RPC that is added later
is guarded without a word about it here.
"""

from __future__ import annotations

import hmac
import ssl
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import grpc

from ckptd.errors import ConfigError
from ckptd.rpc.v1 import coordinator_pb2_grpc as rpc

AUTHORIZATION: Final = "authorization"
MIN_TOKEN_CHARACTERS: Final = 16
_MAX_FILE_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Guard:
    """Whom a coordinator lets in: those with ``token``, if it is set; over TLS, if it has a certificate. All PEM."""

    token: str | None = field(default=None, repr=False)
    certificate: bytes | None = None
    key: bytes | None = field(default=None, repr=False)

    def listen(self, server: grpc.aio.Server, bind: str) -> int:
        """Add the port; returns its number. Raises OSError when it is taken."""
        try:
            if self.certificate is None or self.key is None:
                return server.add_insecure_port(bind)
            return server.add_secure_port(bind, grpc.ssl_server_credentials([(self.key, self.certificate)]))
        except RuntimeError as error:
            raise OSError(f"can't listen on {bind}: {error}") from error

    def interceptors(self) -> list[TokenInterceptor]:
        """For the server."""
        return [TokenInterceptor(self.token)] if self.token else []


@dataclass(frozen=True, slots=True)
class Access:
    """What a caller shows and believes: its token, and who (PEM) may vouch for the coordinator; nobody: no TLS."""

    token: str | None = field(default=None, repr=False)
    authorities: bytes | None = None

    @asynccontextmanager
    async def to(
        self, address: str, options: Sequence[tuple[str, int]] = ()
    ) -> AsyncIterator[tuple[grpc.aio.Channel, rpc.CoordinatorStub]]:
        """A channel to the coordinator at ``address``, and its calls, each with our token."""
        if self.authorities is None:
            channel = grpc.aio.insecure_channel(address, list(options))
        else:
            channel = grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(self.authorities), list(options))
        async with channel:
            stub = rpc.CoordinatorStub(channel)
            if self.token:
                metadata = ((AUTHORIZATION, f"Bearer {self.token}"),)
                for name, call in list(vars(stub).items()):
                    setattr(stub, name, partial(call, metadata=metadata))
            yield channel, stub


OPEN: Final = Access()
UNGUARDED: Final = Guard()


class TokenInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Every call, of whatever kind, must carry the shared token as metadata ``authorization: Bearer <token>``."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}".encode()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Let the call through, or end it with UNAUTHENTICATED."""
        handler = await continuation(handler_call_details)
        given = dict(handler_call_details.invocation_metadata or ()).get(AUTHORIZATION, "")
        if handler is None or hmac.compare_digest(given.encode() if isinstance(given, str) else given, self._expected):
            return handler

        async def refuse(_request: object, context: Any) -> None:
            await context.abort(
                grpc.StatusCode.UNAUTHENTICATED, "the shared token is missing or wrong; see token_file in the settings"
            )

        kinds = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }
        return kinds[bool(handler.request_streaming), bool(handler.response_streaming)](refuse)


def read_token(file: Path | None) -> str | None:
    """The shared token in a file. Raises ConfigError when it can't be read, is too short, or may be read by everybody."""
    if file is None:
        return None
    token = _read(file, "token_file", secret=True).decode("utf-8", "replace").strip()
    if len(token) < MIN_TOKEN_CHARACTERS or not token.isascii() or not token.isprintable():
        raise ConfigError(f"token_file must hold at least {MIN_TOKEN_CHARACTERS} printable ASCII characters file={file}")
    return token


def read_identity(certificate_file: Path | None, key_file: Path | None) -> tuple[bytes | None, bytes | None]:
    """(certificate chain, private key) of a TLS server, PEM; (None, None) without. Raises ConfigError for what can't work."""
    if certificate_file is None and key_file is None:
        return None, None
    if certificate_file is None or key_file is None:
        raise ConfigError("TLS needs both tls_cert_file and tls_key_file; set the other one, too")
    certificate = _read(certificate_file, "tls_cert_file")
    key = _read(key_file, "tls_key_file", secret=True)
    try:
        # The prompt for a password is answered at once: nobody sits at a server's terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate_file, key_file, password=lambda: "")
    except (ssl.SSLError, ValueError, OSError) as error:
        raise ConfigError(
            "tls_cert_file and tls_key_file must be PEM, the key without a password and that of the first certificate"
            f" tls_cert_file={certificate_file} tls_key_file={key_file} error={error}"
        ) from error
    return certificate, key


def read_authorities(file: Path | None) -> bytes | None:
    """The certificates (PEM) that a caller trusts; None without. Raises ConfigError."""
    if file is None:
        return None
    body = _read(file, "tls_ca_file")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=body.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(f"tls_ca_file must hold certificates in PEM file={file} error={error}") from error
    return body


def _read(file: Path, setting: str, secret: bool = False) -> bytes:
    """A file of settings. A secret that every user of the machine may read is none: refused, for a warning would be lost."""
    try:
        with file.open("rb") as opened:
            mode = stat.S_IMODE(file.stat().st_mode)
            body = opened.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"can't read {setting} file={file} error={error}") from error
    if len(body) > _MAX_FILE_BYTES:
        raise ConfigError(f"{setting} is over {_MAX_FILE_BYTES} bytes; is it the right file? file={file}")
    if secret and mode & stat.S_IROTH:
        raise ConfigError(f"every user of this machine may read {setting}; chmod o-rwx {file} mode={mode:o}")
    return body
