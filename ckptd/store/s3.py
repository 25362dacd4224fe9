"""S3 and what speaks its language, in the words that users of s3fs and boto know.

botocore finds everything as it does for everybody else: profile, ~/.aws, environment, container and instance for credentials;
the same and our options for region and endpoint. It is asked for the URL of the bucket, and obstore sends the requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import botocore.session
from botocore import UNSIGNED
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    CredentialRetrievalError,
    HTTPClientError,
    MetadataRetrievalError,
    ParamValidationError,
)
from obstore.store import S3Store

from ckptd.errors import StoreConfigError, StoreError, UnavailableError
from ckptd.store.answers import BUCKET_NAME
from ckptd.store.obstore_store import CONNECT_TIMEOUT_SECONDS, NO_RETRIES, READ_TIMEOUT_SECONDS, ObstoreStore, Place
from ckptd.store.s3_words import seconds_of, tables_of

_KEY: Final = "k"
# obstore asks again some minutes before; botocore refreshes by itself what ends earlier.
_CREDENTIALS_SECONDS: Final = 600
_NO_CREDENTIALS: Final = (
    "no credentials for S3: give key and secret in the storage options, a profile, or AWS_ACCESS_KEY_ID and"
    " AWS_SECRET_ACCESS_KEY (anon = true for none)"
)
_TRANSIENT: Final = (CredentialRetrievalError, MetadataRetrievalError, HTTPClientError)


def open_s3(url: str, options: Mapping[str, object]) -> ObstoreStore:
    """Return the store at ``s3://bucket/prefix``; nothing is asked of it yet. Raises StoreConfigError."""
    protocol, _, rest = url.partition("://")
    bucket, _, root = rest.partition("?")[0].partition("/")
    bucket, root = bucket.rpartition("@")[2], root.strip("/")
    shown = f"{protocol}://{bucket}" + (f"/{root}" if root else "")
    tables = tables_of(options, shown)
    config, client = tables["config_kwargs"], tables["client_kwargs"]
    connect_seconds = seconds_of(config, "connect_timeout", CONNECT_TIMEOUT_SECONDS, shown)
    read_seconds = seconds_of(config, "read_timeout", READ_TIMEOUT_SECONDS, shown)
    try:
        session = botocore.session.Session(profile=options.get("profile"))
        endpoint, region = _bucket_url(session, bucket, options, client, config, tables["config_kwargs.s3"])
        verify = client.get("verify", session.get_config_variable("ca_bundle"))
        credentials: Any = None if options.get("anon") else BotoCredentials(session, options, client)
        bucket_config: Any = _config(endpoint, region, credentials is None, options, tables["s3_additional_kwargs"])
        trust = _trust(verify, shown)

        def connect(transport: dict[str, Any]) -> S3Store:
            options: Any = {**transport, **trust}
            return S3Store(
                bucket,
                config=bucket_config,
                client_options=options,
                retry_config=NO_RETRIES,
                credential_provider=credentials,
            )

        return ObstoreStore(Place(shown, root, connect, connect_seconds, read_seconds, credentials))
    except ParamValidationError as error:
        raise StoreConfigError(f"{BUCKET_NAME}: store={shown}") from error
    except (BotoCoreError, ValueError, TypeError) as error:
        # Not their text: it may hold what was given.
        raise StoreConfigError(f"URL or storage options don't suit S3: store={shown} error={type(error).__name__}") from error


class BotoCredentials:
    """botocore's credentials, for obstore, which calls it in the thread of a request, as it may ask a server."""

    def __init__(self, session: botocore.session.Session, options: Mapping[str, object], client: Mapping[str, object]) -> None:
        """With explicit ones in the options no other place is looked at."""
        self._session = session
        self._found: Any = None
        self.trouble: StoreError | None = None
        key = options.get("key", client.get("aws_access_key_id"))
        secret = options.get("secret", client.get("aws_secret_access_key"))
        if (key is None) != (secret is None):
            raise StoreConfigError("storage options: key and secret belong together")
        if key is not None:
            session.set_credentials(key, secret, options.get("token", client.get("aws_session_token")))

    def __call__(self) -> dict[str, object]:
        try:
            self._found = self._found or self._session.get_credentials()
            found = self._found and self._found.get_frozen_credentials()
        except BotoCoreError as error:
            if isinstance(error, _TRANSIENT):
                self.trouble = UnavailableError(f"the service that gives credentials fails: {type(error).__name__}")
            else:
                self.trouble = StoreConfigError(f"{_NO_CREDENTIALS}: {type(error).__name__}")
            raise
        if found is None:
            self.trouble = StoreConfigError(_NO_CREDENTIALS)
            raise self.trouble
        self.trouble = None
        return {
            "access_key_id": found.access_key,
            "secret_access_key": found.secret_key,
            "token": found.token,
            "expires_at": datetime.now(UTC) + timedelta(seconds=_CREDENTIALS_SECONDS),
        }


def _bucket_url(
    session: botocore.session.Session,
    bucket: str,
    options: Mapping[str, object],
    client: Mapping[str, object],
    config: Mapping[str, object],
    s3: Mapping[str, object],
) -> tuple[str, str]:
    """(URL of the bucket, region to sign for): botocore makes a request that isn't sent; we keep where it would go.

    (A presigned URL would be simpler, and names another host than requests go to.)
    """
    named = {name: config[name] for name in ("region_name", "use_dualstack_endpoint", "use_fips_endpoint") if name in config}
    boto = session.create_client(
        "s3",
        client.get("region_name"),
        use_ssl=client.get("use_ssl", options.get("use_ssl", True)),
        endpoint_url=options.get("endpoint_url", client.get("endpoint_url")),
        config=Config(signature_version=UNSIGNED, s3=dict(s3), **named),  # so that no credentials are looked for yet
    )
    boto.meta.events.register_first("request-created.s3.HeadObject", _keep)
    try:
        boto.head_object(Bucket=bucket, Key=_KEY)
        raise StoreConfigError("this version of botocore doesn't say where it looks for a bucket")
    except _NotSent as request:
        url = urlsplit(request.url)
    region = boto.meta.region_name
    return f"{url.scheme}://{url.netloc}{url.path.removesuffix(f'/{_KEY}')}", "us-east-1" if region == "aws-global" else region


class _NotSent(Exception):  # noqa: N818 - what we are after
    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url


def _keep(request: AWSRequest, **_: object) -> None:
    raise _NotSent(request.url)


def _config(
    endpoint: str, region: str, anonymous: bool, options: Mapping[str, object], additional: Mapping[str, object]
) -> dict[str, Any]:
    """obstore's words for it. It looks into the environment for what it isn't told, so it is told what matters."""
    config: dict[str, Any] = {
        "endpoint": endpoint,
        "aws_endpoint_url_s3": endpoint,
        "virtual_hosted_style_request": True,  # the endpoint names the bucket, in its host or in its path
        "region": region,
        "skip_signature": anonymous,
        "conditional_put": "etag",
        # Frames carry their own hashes: a signature of each body costs more than a third of the speed (FACTS).
        "unsigned_payload": True,
        "disable_bulk_delete": True,
    }
    if options.get("requester_pays"):
        config["request_payer"] = True
    for ours, theirs in (("server_side_encryption", "ServerSideEncryption"), ("sse_kms_key_id", "SSEKMSKeyId")):
        if theirs in additional:
            config[ours] = additional[theirs]
    if "BucketKeyEnabled" in additional:
        config["sse_bucket_key_enabled"] = bool(additional["BucketKeyEnabled"])
    return config


def _trust(verify: object, shown: str) -> dict[str, Any]:
    """obstore's words for boto's ``verify``: False, or the path of a PEM file."""
    if verify is False:
        return {"allow_invalid_certificates": True}
    if not isinstance(verify, str):
        return {}
    try:
        return {"root_certificate": Path(verify).read_bytes()}
    except OSError as error:
        raise StoreConfigError(f"can't read the certificates (verify, or AWS_CA_BUNDLE) file={verify} store={shown}") from error
