"""Settings: a TOML file, overridden by CKPTD_<SECTION>__<KEY> in the environment, overridden by the command line.

Every wait has its name and default here, in seconds.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from socket import gethostname
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from ckptd.errors import ConfigError

PREFIX: Final = "CKPTD_"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StoreSettings(_Section):
    """[store] where checkpoints go."""

    url: str = Field(
        "", description="s3://bucket/prefix, gs://bucket/prefix, az://container/prefix, any fsspec URL, or a directory"
    )
    storage_options: dict[str, object] = Field(
        default_factory=dict,
        description="S3: in the words of s3fs; Azure: account_name, account_key or sas_token, and others of obstore; else"
        " passed to the fsspec filesystem as they are",
    )
    concurrency: int = Field(8, ge=1, le=256, description="requests of this daemon in flight at once")
    upload_bytes_per_second: int | None = Field(None, ge=1, description="cap on uploads; none: as fast as it goes")
    request_seconds: float = Field(
        30.0, gt=0, description="how long one small request is tried again before its caller is told"
    )
    read_seconds: float = Field(
        120.0,
        gt=0,
        description="how long one read of a restore is tried again before the world fails; after some that do, the checkpoint"
        " before is tried",
    )


class ArenaSettings(_Section):
    """[arena] shared memory between trainers and daemon."""

    directory: Path | None = Field(None, description="on tmpfs, mode 0700, one per daemon; default /dev/shm/ckptd-<uid>-<node>")
    limit_bytes: int = Field(1 << 40, ge=1 << 20, description="most shared memory of all trainers of this node together")
    keep_seconds: float = Field(
        3600.0, ge=0, description="how long what a dead trainer has sealed waits for its coordinator; it holds memory meanwhile"
    )
    ring_bytes: int = Field(
        128 << 20,
        ge=8 << 20,
        description="shared memory of a restore's ring, one for all ranks of the node; as much is on its way from the store at"
        " once, and only what trainers haven't copied yet is really used",
    )


class DaemonSettings(_Section):
    """[daemon] the sidecar."""

    socket: Path | None = Field(None, description="unix socket; default as CKPTD_SOCKET or the user's runtime directory")
    node: str = Field(default_factory=gethostname, pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="this node's name")
    coordinator: str | None = Field(None, description="host:port; default: as announced in the object store")
    cpu_threads: int = Field(2, ge=1, le=256, description="threads that hash, encode and decode")
    nice: int = Field(10, ge=0, le=19, description="how far those threads give way to others on a busy machine")
    memory_bytes: int = Field(512 << 20, ge=64 << 20, description="buffers beyond the arenas: bytes in flight to the store")
    codec: Literal["raw", "planes", "auto"] = Field(
        "auto",
        description="how frames are stored; auto encodes where that is sooner done than sending more, by what it measures",
    )
    frame_bytes: int = Field(4 << 20, ge=4096, le=4 << 20, description="size of a frame")
    segment_bytes: int = Field(16 << 20, ge=4096, le=64 << 20, description="size of a stored segment")
    connect_seconds: float = Field(5.0, gt=0, description="one try to reach the coordinator")
    drain_seconds: float = Field(30.0, ge=0, description="at SIGTERM, how long uploads may go on")
    token_file: Path | None = Field(None, description="shared token for the coordinator; not readable by every user")
    tls_ca_file: Path | None = Field(None, description="PEM: who may vouch for the coordinator; none: no TLS")
    metrics_bind: str | None = Field(None, description="host:port for Prometheus, port 0 for any free one; none: not served")


class CoordinatorSettings(_Section):
    """[coordinator] one per job."""

    bind: str = Field("127.0.0.1:0", description="address to listen on; other than loopback needs token_file")
    advertise: str | None = Field(None, description="host:port told to daemons; default: as bound")
    token_file: Path | None = Field(None, description="shared token that every call must carry; not readable by every user")
    tls_cert_file: Path | None = Field(None, description="PEM: certificate (chain) for the advertised address; none: no TLS")
    tls_key_file: Path | None = Field(None, description="PEM: its private key, not readable by every user")
    metrics_bind: str | None = Field(None, description="host:port for Prometheus, port 0 for any free one; none: not served")
    every_steps: int = Field(100, ge=1, description="a snapshot every so many steps")
    heartbeat_seconds: float = Field(0.5, gt=0, description="between heartbeats of a node")
    lease_seconds: float = Field(3.0, gt=0, description="silence after which a node may be called dead, at least 2 heartbeats")
    debounce_seconds: float = Field(
        3.0, ge=0, description="how long a world of new size waits for more changes before it forms"
    )
    join_seconds: float = Field(30.0, ge=0, description="how long the first world waits for the most nodes it may have")
    restore_seconds: float = Field(600.0, gt=0, description="how long all ranks together may take to restore")
    keep_last: int = Field(5, ge=0, description="so many newest checkpoints are kept; 0: all of them")
    keep_every: int = Field(0, ge=0, description="besides, the first checkpoint of every so many steps is kept; 0: none")
    grace_seconds: float = Field(60.0, ge=0, description="from a checkpoint's end to its deletion, by the store's clock")
    drain_seconds: float = Field(30.0, ge=0, description="how long a finished snapshot of a lost world may still be uploaded")
    fruitless_generations: int = Field(
        5, ge=1, le=1000, description="worlds in a row that may fail without a checkpoint; then one step back, then the end"
    )
    backoff_seconds: float = Field(30.0, ge=0, description="longest wait between two worlds that fail without a checkpoint")


class Settings(BaseSettings):
    """Everything."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True)

    store: StoreSettings = StoreSettings()  # type: ignore[call-arg]
    arena: ArenaSettings = ArenaSettings()  # type: ignore[call-arg]
    daemon: DaemonSettings = DaemonSettings()  # type: ignore[call-arg]
    coordinator: CoordinatorSettings = CoordinatorSettings()  # type: ignore[call-arg]

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment over the file; `load_settings` puts the command line over both."""
        return env_settings, init_settings


def load_settings(file: Path | None, overrides: Mapping[str, Mapping[str, object]]) -> Settings:
    """Read ``file`` (else $CKPTD_CONFIG, else none), the environment and ``overrides``.

    ``overrides`` is {section: {key: value}}, with None for what was not given.

    Raises ConfigError naming file, line, key and what is allowed.
    """
    if file is None and (named := os.environ.get("CKPTD_CONFIG")):
        file = Path(named)
    text = ""
    content: dict[str, object] = {}
    if file is not None:
        try:
            text = file.read_text()
            content = tomllib.loads(text)
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"can't read the settings in {file}: {error}") from error
    _check_environment()
    try:
        settings = Settings(**content)  # type: ignore[arg-type]
    except SettingsError as error:
        raise ConfigError(
            f"settings are not possible: environment variable {PREFIX}STORE__STORAGE_OPTIONS: write it as JSON, as in"
            ' {"endpoint_url": "http://host:9000"}'
        ) from error
    except ValidationError as error:
        raise ConfigError(_explain(error, "", file, text)) from error
    # validated again as plain models: the command line wins over the environment
    sections: dict[str, BaseModel] = {}
    for name, kind in _sections().items():
        values = getattr(settings, name).model_dump()
        values.update({key: value for key, value in overrides.get(name, {}).items() if value is not None})
        try:
            sections[name] = kind.model_validate(values)
        except ValidationError as error:
            raise ConfigError(_explain(error, name, None, "")) from error
    return Settings.model_construct(**sections)  # type: ignore[arg-type]


def _sections() -> dict[str, type[BaseModel]]:
    return {name: kind for name, field in Settings.model_fields.items() if isinstance(kind := field.annotation, type)}


def _check_environment() -> None:
    """A section that is misspelt in the environment would be overlooked. Raises ConfigError."""
    for name in os.environ:
        section, separator, _ = name.upper().removeprefix(PREFIX).partition("__")
        if name.upper().startswith(PREFIX) and separator and section.lower() not in _sections():
            raise ConfigError(
                f"settings are not possible: environment variable {name}: there is no such section"
                f" (sections: {', '.join(_sections())}; a key is {PREFIX}<SECTION>__<KEY>)"
            )


def _explain(error: ValidationError, section: str, file: Path | None, text: str) -> str:
    """``section``: what the places in ``error`` lie in; only the command line is left to have said it then."""
    lines = []
    for problem in error.errors(include_url=False, include_input=False):
        place = [part for part in (section, *map(str, problem["loc"])) if part]
        what = "there is no such setting" if problem["type"] == "extra_forbidden" else problem["msg"]
        if len(place) == 1 and place[0] in _sections():
            what = f"this is a section; write [{place[0]}] and its keys below"
        lines.append(f"{_source(place, section, file, text)}{'.'.join(place)}: {what}{_allowed(place)}")
    return "settings are not possible: " + "; ".join(lines)


def _source(place: list[str], section: str, file: Path | None, text: str) -> str:
    """Who said it: the environment wins over the file."""
    variable = PREFIX + "__".join(place[:2]).upper()
    named = next((name for name in os.environ if name.upper() == variable), None)
    if section:
        return "command line: "
    if named is not None:
        return f"environment variable {named}: "
    line = _line_of(text, place) if file is not None else None
    return f"{file}:{line}: " if line is not None else ""


def _line_of(text: str, place: list[str]) -> int | None:
    """Line of ``section.key`` in TOML text, as far as a look at the lines tells."""
    section, found = "", None
    for number, line in enumerate(text.splitlines(), 1):
        if head := re.match(r"\s*\[([^\[\]]+)\]", line):
            section = head[1].strip()
            if place == [section]:
                return number
        elif key := re.match(r"\s*([A-Za-z0-9_.]+)\s*=(.*)", line):
            names = [part for part in (*section.split("."), *key[1].split(".")) if part]
            if names[:2] == place[:2]:
                return number
            if names == place[:1] and re.search(rf"\b{re.escape(place[1])}\s*=", key[2]):
                found = number  # an inline table
    return found


def _allowed(place: list[str]) -> str:
    section = Settings.model_fields.get(place[0])
    if section is None:
        return f" (sections: {', '.join(Settings.model_fields)})"
    kind = section.annotation
    if len(place) < 2 or not isinstance(kind, type) or not issubclass(kind, BaseModel):
        return ""
    field = kind.model_fields.get(place[1])
    return f" ({field.description})" if field else f" (keys of [{place[0]}]: {', '.join(kind.model_fields)})"
