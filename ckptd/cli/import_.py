"""`ckptd import DIR|URL`: another format's checkpoint as a checkpoint of a job."""

from __future__ import annotations

import asyncio
import secrets
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote

import typer
from rich.filesize import decimal

from ckptd.cli.asking import access_of
from ckptd.cli.options import ConfigFile, JobId, StoreUrl, reading_store
from ckptd.cli.progress import progress
from ckptd.commit.assemble import assemble
from ckptd.commit.fold import restore_candidate
from ckptd.commit.log import CommitLog
from ckptd.commit.office import Committer, take_office
from ckptd.config import Settings, load_settings
from ckptd.coordinator.leader import check_free
from ckptd.errors import CkptdError, JobInUseError
from ckptd.interchange.foreign import Files
from ckptd.interchange.importing import Prepared, prepare, write_state
from ckptd.interchange.read_source import open_local, open_url, read_source
from ckptd.model.ids import Attempt, Generation, Snapshot, check_job
from ckptd.pipeline.threads import codec_pool
from ckptd.pipeline.write import WriteOptions
from ckptd.store.base import Store
from ckptd.store.open import check_store, open_files
from ckptd.store.probe import probe
from ckptd.store.retry import RetryingStore, RetrySettings


def import_(
    source: Annotated[str, typer.Argument(metavar="DIR|URL", help="a DCP directory, a torch.save file, safetensors")],
    job: JobId,
    step: Annotated[int, typer.Option(help="how many steps of training the checkpoint counts as", min=0)] = 0,
    store: StoreUrl = None,
    config: ConfigFile = None,
) -> None:
    """Make a checkpoint of a job from files of another format; `Checkpointer.load(state)` loads it. Needs no torch.

    Nothing is unpickled: what isn't tensors or plain data is refused. The job must have no coordinator running (exit code 3).
    """
    check_job(job)
    settings = load_settings(config, {"store": {"url": store}})
    print(asyncio.run(_import(settings, reading_store(settings), source, job, step)))


async def _import(settings: Settings, store: Store, source: str, job: str, step: int) -> str:
    with progress("looking"):
        files, name = await _open(settings, source)
        what, tree = await read_source(files, name)
        prepared = prepare(tree, step)
    log, committer = await _office(settings, store, job)
    attempt = Attempt(Snapshot(Generation(committer.office.epoch, 1), step), 0)
    try:
        n = await _write(settings, store, log, committer, job, attempt, files, prepared)
    except BaseException:
        with suppress(CkptdError):  # if even this fails, the first error is the one to tell
            await committer.abort(attempt)  # so that what was written may be collected
        raise
    tensors, size = len(prepared.tensors), decimal(prepared.nbytes)
    return (
        f"{what} is imported: {tensors} tensors, {size}, as step {step} of job {job} (record {n}), which it will restore next"
    )


async def _open(settings: Settings, source: str) -> tuple[Files, str | None]:
    """A path, or a URL: with the storage options of the settings if the job's store is of the same kind."""
    scheme, separator, _ = source.partition("://")
    if not separator or scheme == "file":
        return open_local(Path(unquote(source.removeprefix("file://")) if separator else source))
    options = settings.store.storage_options if settings.store.url.startswith(f"{scheme}://") else {}
    retry = RetrySettings(deadline_seconds=settings.store.read_seconds)
    return await open_url(source, lambda url: RetryingStore(open_files(url, options), retry))


async def _office(settings: Settings, store: Store, job: str) -> tuple[CommitLog, Committer]:
    """Take office as a coordinator does. Raises JobInUseError when there is one, and what the store raises."""
    await check_store(store)
    await probe(store, f"{job}/")
    try:
        await check_free(store, job, False, settings.coordinator.lease_seconds, access_of(settings))
    except JobInUseError as error:
        raise JobInUseError(
            f"can't import into a running job: stop its coordinator first, or use another job id: {error}"
        ) from None
    log = CommitLog(store, job)
    await log.load()
    return log, Committer(log, await take_office(log))


async def _write(
    settings: Settings,
    store: Store,
    log: CommitLog,
    committer: Committer,
    job: str,
    attempt: Attempt,
    files: Files,
    prepared: Prepared,
) -> int:
    options = WriteOptions(codec=settings.daemon.codec, concurrency=settings.store.concurrency)
    newest = restore_candidate(log.state)
    parent = newest.n if newest else None
    writer = f"import.{secrets.token_hex(8)}"
    pool: ThreadPoolExecutor
    with codec_pool(settings.daemon.cpu_threads, 0) as pool, progress("importing", prepared.nbytes, in_bytes=True) as shown:
        part = await write_state(store, job, attempt, writer, files, prepared, options, pool, shown.advance)
    _, manifest = await assemble(store, job, attempt, 1, parent, [part])
    return await committer.commit(attempt, manifest, parent=parent)
