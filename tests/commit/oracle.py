"""An independent judge of commit logs: invariants I1, I3, I4, I6, I7 and the rules of PROTOCOLS 4.2, from raw records.

It shares no code with ckptd: a log is a list of dicts as they stand in the JSON, and every question is answered by scanning
the whole history again. Slow and plain on purpose; keep it so that it can be checked by reading PROTOCOLS beside it.

``counted`` are the fold's claims, one bool per record; ``deletable[p]`` is what it claims may be deleted once records 0..p
stand: (log numbers of commits, attempts, generations whose layouts).
"""

from typing import Any

Raw = dict[str, Any]
Deletable = tuple[set[int], set[str], set[str]]


def live(log: list[Raw], counted: list[bool], n: int, upto: int) -> bool:
    """Is record n, among records 0..upto-1, a counted COMMIT that no counted RETIRE or QUARANTINE names after it?"""
    if not (0 <= n < upto and counted[n] and log[n]["body"]["type"] == "COMMIT"):
        return False
    for j in range(n + 1, upto):
        if counted[j] and log[j]["body"]["type"] in ("RETIRE", "QUARANTINE") and log[j]["body"]["n"] == n:
            return False
    return True


def pinned(log: list[Raw], counted: list[bool], n: int, upto: int, who: str | None = None) -> bool:
    """Is there a counted PIN of n (by ``who``, or by anybody) with no counted UNPIN of the same name after it?"""
    for j in range(upto):
        body = log[j]["body"]
        if counted[j] and body["type"] == "PIN" and body["n"] == n and (who is None or body["who"] == who):
            undone = [
                k for k in range(j + 1, upto) if counted[k] and log[k]["body"] == {"type": "UNPIN", "n": n, "who": body["who"]}
            ]
            if not undone:
                return True
    return False


def newest(log: list[Raw], counted: list[bool], upto: int) -> int | None:
    """The last live commit among records 0..upto-1."""
    return max((n for n in range(upto) if live(log, counted, n, upto)), default=None)


def generation(log: list[Raw], n: int) -> tuple[int, int]:
    """That of commit n."""
    epoch, number = log[n]["body"]["attempt"].split(".")[0].split("-")
    return int(epoch), int(number)


def snapshot(text: str) -> tuple[int, int, int]:
    """(epoch, number, step) of a snapshot, or of an attempt at one."""
    parts = text.split(".")
    epoch, number = parts[0].split("-")
    return int(epoch), int(number), int(parts[1])


def _of(log: list[Raw], n: int) -> str:
    return str(log[n]["body"]["attempt"])


def watermark(log: list[Raw], counted: list[bool], upto: int) -> tuple[int, int, int]:
    """The snapshot before which everything is over, by the FORGETs among records 0..upto-1; (-1, -1, -1) without any."""
    marks = [snapshot(log[j]["body"]["before"]) for j in range(upto) if counted[j] and log[j]["body"]["type"] == "FORGET"]
    return max(marks, default=(-1, -1, -1))


def remembered(log: list[Raw], counted: list[bool]) -> tuple[set[int], set[str]]:
    """The commits and aborted attempts that the state after the log must have, and no others."""
    last = max((j for j in range(len(log)) if counted[j] and log[j]["body"]["type"] == "FORGET"), default=-1)
    mark = watermark(log, counted, len(log))
    commits = [n for n in range(len(log)) if counted[n] and log[n]["body"]["type"] == "COMMIT"]
    roots = [n for n in commits if n <= last and (live(log, counted, n, last) or pinned(log, counted, n, last))]
    needed = {m for n in roots for m in _needs(log, n)}
    aborts = [log[j]["body"]["attempt"] for j in range(len(log)) if counted[j] and log[j]["body"]["type"] == "ABORT"]
    return (
        {n for n in commits if n > last or n in needed or snapshot(_of(log, n)) >= mark},
        {attempt for attempt in aborts if snapshot(attempt) >= mark},
    )


def rules(log: list[Raw]) -> list[bool]:
    """Which records count, read off PROTOCOLS 4.2 one by one."""
    counted: list[bool] = []
    for i in range(len(log)):
        counted.append(_counts(log, counted, i))
    return counted


def _counts(log: list[Raw], counted: list[bool], i: int) -> bool:
    body, office = log[i]["body"], log[i]["office"]
    kind = body["type"]
    reigns = [j for j in range(i) if counted[j] and log[j]["body"]["type"] == "EPOCH"]
    if kind == "EPOCH":
        return bool(body["number"] == len(reigns) + 1)
    if kind == "PIN":
        return live(log, counted, body["n"], i)
    if kind == "UNPIN":
        return pinned(log, counted, body["n"], i, body["who"])
    if not reigns or office != [len(reigns), log[reigns[-1]]["nonce"]]:
        return False
    if kind in ("RETIRE", "QUARANTINE"):
        return live(log, counted, body["n"], i)
    before = [j for j in range(i) if counted[j] and log[j]["body"]["type"] == "COMMIT"]
    passed = watermark(log, counted, i)
    if kind == "FORGET":
        return passed < snapshot(body["before"]) and any(snapshot(body["before"]) <= snapshot(_of(log, j)) for j in before[-1:])
    for j in range(i):
        if counted[j] and log[j]["body"].get("attempt") == body["attempt"]:
            return False
    if snapshot(body["attempt"]) < passed:
        return False
    if kind == "ABORT":
        return True
    if any(generation(log, j) > generation(log, i) for j in before):
        return False
    return all(live(log, counted, b, i) for b in body["bases"]) and body["parent"] == newest(log, counted, i)


def violations(log: list[Raw], counted: list[bool], deletable: list[Deletable]) -> list[str]:
    """Every invariant that these claims break, by name. Doesn't ask ``rules``: claims are judged by what they lead to."""
    return (
        numbers(log) + offices(log, counted) + resolutions(log, counted) + lineage(log, counted) + kept(log, counted, deletable)
    )


def numbers(log: list[Raw]) -> list[str]:
    """I1, as far as a list can tell: record i says it is record i."""
    return [f"I1: record {i} says {raw['seq']}" for i, raw in enumerate(log) if raw["seq"] != i]


def offices(log: list[Raw], counted: list[bool]) -> list[str]:
    """I3: at most one office commits in an epoch, and none after a later EPOCH."""
    found = []
    for i, raw in enumerate(log):
        if not counted[i] or raw["office"] is None:
            continue
        epoch, nonce = raw["office"]
        for j in range(i):
            other = log[j]["office"]
            if counted[j] and other is not None:
                if other[0] > epoch:
                    found.append(f"I3: record {i} of epoch {epoch} counts after record {j} of epoch {other[0]}")
                if other[0] == epoch and other[1] != nonce:
                    found.append(f"I3: records {j} and {i} count in epoch {epoch} for two offices")
        if not any(
            counted[j] and log[j]["body"]["type"] == "EPOCH" and log[j]["office"] == raw["office"] for j in range(i + 1)
        ):
            found.append(f"I3: record {i} counts for an office that nobody took")
    return found


def resolutions(log: list[Raw], counted: list[bool]) -> list[str]:
    """I4: an attempt is resolved once, so an acknowledged COMMIT or ABORT is never taken back by another one."""
    found = []
    for i, raw in enumerate(log):
        for j in range(i):
            if counted[i] and counted[j] and raw["body"].get("attempt", i) == log[j]["body"].get("attempt", j):
                found.append(f"I4: records {j} and {i} both resolve attempt {raw['body']['attempt']}")
    return found


def lineage(log: list[Raw], counted: list[bool]) -> list[str]:
    """I8's ground: a commit descends from what a restore would have given right before it."""
    return [
        f"I8: commit {i} has parent {raw['body']['parent']}"
        for i, raw in enumerate(log)
        if counted[i] and raw["body"]["type"] == "COMMIT" and raw["body"]["parent"] != newest(log, counted, i)
    ]


def kept(log: list[Raw], counted: list[bool], deletable: list[Deletable]) -> list[str]:
    """I6 and I7: with everything deleted as soon as it was deletable, all that is live or pinned still has all its data."""
    found = []
    commits = [n for n in range(len(log)) if counted[n] and log[n]["body"]["type"] == "COMMIT"]
    gone_commits: set[int] = set()
    gone_attempts: set[str] = set()
    gone_layouts: set[tuple[int, int]] = set()
    for p in range(len(log)):
        if gone_commits or gone_attempts or gone_layouts:
            for n in commits:
                held = n <= p and pinned(log, counted, n, p + 1)
                if not held and not live(log, counted, n, p + 1):
                    continue
                if generation(log, n) in gone_layouts:
                    found.append(f"{'I7' if held else 'I6'}: after record {p} commit {n} needs its layout, which may be gone")
                for m in _needs(log, n):
                    if m in gone_commits or log[m]["body"].get("attempt") in gone_attempts:
                        found.append(f"{'I7' if held else 'I6'}: after record {p} commit {n} needs {m}, which may be gone")
        if not (gone_commits <= deletable[p][0] and gone_attempts <= deletable[p][1]):
            found.append(f"I6: what was deletable before record {p} no longer is")
        gone_commits |= deletable[p][0]
        gone_attempts |= deletable[p][1]
        gone_layouts |= {(int(text.split("-")[0]), int(text.split("-")[1])) for text in deletable[p][2]}
    return found


def leaks(log: list[Raw], counted: list[bool], deletable: Deletable) -> list[str]:
    """What should be deletable at the end of the log and isn't listed: unreached, unpinned, ended; or aborted."""
    end = len(log)
    commits = [n for n in range(end) if counted[n] and log[n]["body"]["type"] == "COMMIT"]
    needed = {m for n in commits if live(log, counted, n, end) or pinned(log, counted, n, end) for m in _needs(log, n)}
    aborted = {log[i]["body"]["attempt"] for i in range(end) if counted[i] and log[i]["body"]["type"] == "ABORT"}
    mark, known = watermark(log, counted, end), {_of(log, n) for n in remembered(log, counted)[0]}
    named = {raw["body"]["attempt"] for raw in log if "attempt" in raw["body"]}
    passed = {attempt for attempt in named - known if snapshot(attempt) < mark}
    last = max((generation(log, n) for n in commits), default=(0, 0))
    used = {generation(log, n) for n in needed} | {last}
    ended = {f"{epoch}-{n}" for epoch, n in {generation(log, n) for n in commits} - used}
    return (
        [f"leak: commit {n}" for n in commits if n not in needed | deletable[0]]
        + [f"leak: attempt {a}" for a in (aborted | passed) - deletable[1]]
        + [f"leak: layouts of {g}" for g in ended - deletable[2]]
    )


def _needs(log: list[Raw], n: int) -> set[int]:
    """Itself, and each commit that it names as a base: it names all of them in whose data its frames lie."""
    return {n, *log[n]["body"].get("bases", ())}
