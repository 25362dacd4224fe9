from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PingRequest(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: str
    def __init__(self, job: _Optional[str] = ...) -> None: ...

class PingReply(_message.Message):
    __slots__ = ("job", "epoch")
    JOB_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    job: str
    epoch: int
    def __init__(self, job: _Optional[str] = ..., epoch: _Optional[int] = ...) -> None: ...

class RetireRequest(_message.Message):
    __slots__ = ("job", "seq")
    JOB_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    job: str
    seq: int
    def __init__(self, job: _Optional[str] = ..., seq: _Optional[int] = ...) -> None: ...

class RetireReply(_message.Message):
    __slots__ = ("record",)
    RECORD_FIELD_NUMBER: _ClassVar[int]
    record: int
    def __init__(self, record: _Optional[int] = ...) -> None: ...

class Generation(_message.Message):
    __slots__ = ("epoch", "n")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    n: int
    def __init__(self, epoch: _Optional[int] = ..., n: _Optional[int] = ...) -> None: ...

class Snapshot(_message.Message):
    __slots__ = ("generation", "step")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    generation: Generation
    step: int
    def __init__(self, generation: _Optional[_Union[Generation, _Mapping]] = ..., step: _Optional[int] = ...) -> None: ...

class Attempt(_message.Message):
    __slots__ = ("snapshot", "number")
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    snapshot: Snapshot
    number: int
    def __init__(self, snapshot: _Optional[_Union[Snapshot, _Mapping]] = ..., number: _Optional[int] = ...) -> None: ...

class FromNode(_message.Message):
    __slots__ = ("hello", "heartbeat", "join", "member", "agent_gone", "rank_up", "rank_gone", "restore_ask", "restore_report", "sealed", "missed", "uploaded", "finished", "kv_set", "kv_add", "kv_get", "goodbye")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    JOIN_FIELD_NUMBER: _ClassVar[int]
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    AGENT_GONE_FIELD_NUMBER: _ClassVar[int]
    RANK_UP_FIELD_NUMBER: _ClassVar[int]
    RANK_GONE_FIELD_NUMBER: _ClassVar[int]
    RESTORE_ASK_FIELD_NUMBER: _ClassVar[int]
    RESTORE_REPORT_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    MISSED_FIELD_NUMBER: _ClassVar[int]
    UPLOADED_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    KV_SET_FIELD_NUMBER: _ClassVar[int]
    KV_ADD_FIELD_NUMBER: _ClassVar[int]
    KV_GET_FIELD_NUMBER: _ClassVar[int]
    GOODBYE_FIELD_NUMBER: _ClassVar[int]
    hello: NodeHello
    heartbeat: Heartbeat
    join: Join
    member: Member
    agent_gone: AgentGone
    rank_up: RankUp
    rank_gone: RankGone
    restore_ask: RestoreAsk
    restore_report: RestoreReport
    sealed: Sealed
    missed: Missed
    uploaded: Uploaded
    finished: Finished
    kv_set: KvSet
    kv_add: KvAdd
    kv_get: KvGet
    goodbye: Goodbye
    def __init__(self, hello: _Optional[_Union[NodeHello, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., join: _Optional[_Union[Join, _Mapping]] = ..., member: _Optional[_Union[Member, _Mapping]] = ..., agent_gone: _Optional[_Union[AgentGone, _Mapping]] = ..., rank_up: _Optional[_Union[RankUp, _Mapping]] = ..., rank_gone: _Optional[_Union[RankGone, _Mapping]] = ..., restore_ask: _Optional[_Union[RestoreAsk, _Mapping]] = ..., restore_report: _Optional[_Union[RestoreReport, _Mapping]] = ..., sealed: _Optional[_Union[Sealed, _Mapping]] = ..., missed: _Optional[_Union[Missed, _Mapping]] = ..., uploaded: _Optional[_Union[Uploaded, _Mapping]] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ..., kv_set: _Optional[_Union[KvSet, _Mapping]] = ..., kv_add: _Optional[_Union[KvAdd, _Mapping]] = ..., kv_get: _Optional[_Union[KvGet, _Mapping]] = ..., goodbye: _Optional[_Union[Goodbye, _Mapping]] = ...) -> None: ...

class ToNode(_message.Message):
    __slots__ = ("welcome", "formed", "regroup", "complete", "restore_target", "restore_go", "restore_failed", "schedule", "release", "committed", "aborted", "kv_value", "refused", "waiting", "bases")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    FORMED_FIELD_NUMBER: _ClassVar[int]
    REGROUP_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    RESTORE_TARGET_FIELD_NUMBER: _ClassVar[int]
    RESTORE_GO_FIELD_NUMBER: _ClassVar[int]
    RESTORE_FAILED_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    ABORTED_FIELD_NUMBER: _ClassVar[int]
    KV_VALUE_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    BASES_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    formed: Formed
    regroup: Regroup
    complete: Complete
    restore_target: RestoreTarget
    restore_go: RestoreGo
    restore_failed: RestoreFailed
    schedule: Schedule
    release: Release
    committed: Committed
    aborted: Aborted
    kv_value: KvValue
    refused: Refused
    waiting: Waiting
    bases: Bases
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., formed: _Optional[_Union[Formed, _Mapping]] = ..., regroup: _Optional[_Union[Regroup, _Mapping]] = ..., complete: _Optional[_Union[Complete, _Mapping]] = ..., restore_target: _Optional[_Union[RestoreTarget, _Mapping]] = ..., restore_go: _Optional[_Union[RestoreGo, _Mapping]] = ..., restore_failed: _Optional[_Union[RestoreFailed, _Mapping]] = ..., schedule: _Optional[_Union[Schedule, _Mapping]] = ..., release: _Optional[_Union[Release, _Mapping]] = ..., committed: _Optional[_Union[Committed, _Mapping]] = ..., aborted: _Optional[_Union[Aborted, _Mapping]] = ..., kv_value: _Optional[_Union[KvValue, _Mapping]] = ..., refused: _Optional[_Union[Refused, _Mapping]] = ..., waiting: _Optional[_Union[Waiting, _Mapping]] = ..., bases: _Optional[_Union[Bases, _Mapping]] = ...) -> None: ...

class NodeHello(_message.Message):
    __slots__ = ("protocol", "job", "node", "incarnation")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    job: str
    node: str
    incarnation: str
    def __init__(self, protocol: _Optional[int] = ..., job: _Optional[str] = ..., node: _Optional[str] = ..., incarnation: _Optional[str] = ...) -> None: ...

class RankStatus(_message.Message):
    __slots__ = ("generation", "rank", "step", "free_slots")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    FREE_SLOTS_FIELD_NUMBER: _ClassVar[int]
    generation: Generation
    rank: int
    step: int
    free_slots: int
    def __init__(self, generation: _Optional[_Union[Generation, _Mapping]] = ..., rank: _Optional[int] = ..., step: _Optional[int] = ..., free_slots: _Optional[int] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("ranks", "report")
    RANKS_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    ranks: _containers.RepeatedCompositeFieldContainer[RankStatus]
    report: NodeReport
    def __init__(self, ranks: _Optional[_Iterable[_Union[RankStatus, _Mapping]]] = ..., report: _Optional[_Union[NodeReport, _Mapping]] = ...) -> None: ...

class NodeReport(_message.Message):
    __slots__ = ("troubles", "uploads", "newest")
    TROUBLES_FIELD_NUMBER: _ClassVar[int]
    UPLOADS_FIELD_NUMBER: _ClassVar[int]
    NEWEST_FIELD_NUMBER: _ClassVar[int]
    troubles: _containers.RepeatedCompositeFieldContainer[Trouble]
    uploads: _containers.RepeatedCompositeFieldContainer[Upload]
    newest: Durable
    def __init__(self, troubles: _Optional[_Iterable[_Union[Trouble, _Mapping]]] = ..., uploads: _Optional[_Iterable[_Union[Upload, _Mapping]]] = ..., newest: _Optional[_Union[Durable, _Mapping]] = ...) -> None: ...

class Trouble(_message.Message):
    __slots__ = ("topic", "what", "since_unix_seconds", "times")
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    WHAT_FIELD_NUMBER: _ClassVar[int]
    SINCE_UNIX_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TIMES_FIELD_NUMBER: _ClassVar[int]
    topic: str
    what: str
    since_unix_seconds: float
    times: int
    def __init__(self, topic: _Optional[str] = ..., what: _Optional[str] = ..., since_unix_seconds: _Optional[float] = ..., times: _Optional[int] = ...) -> None: ...

class Upload(_message.Message):
    __slots__ = ("step", "done_bytes", "total_bytes", "seconds")
    STEP_FIELD_NUMBER: _ClassVar[int]
    DONE_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    step: int
    done_bytes: int
    total_bytes: int
    seconds: float
    def __init__(self, step: _Optional[int] = ..., done_bytes: _Optional[int] = ..., total_bytes: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...

class Durable(_message.Message):
    __slots__ = ("step", "bytes", "staged_to_durable_seconds", "unix_seconds", "stall_seconds")
    STEP_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    STAGED_TO_DURABLE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    UNIX_SECONDS_FIELD_NUMBER: _ClassVar[int]
    STALL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    step: int
    bytes: int
    staged_to_durable_seconds: float
    unix_seconds: float
    stall_seconds: float
    def __init__(self, step: _Optional[int] = ..., bytes: _Optional[int] = ..., staged_to_durable_seconds: _Optional[float] = ..., unix_seconds: _Optional[float] = ..., stall_seconds: _Optional[float] = ...) -> None: ...

class Join(_message.Message):
    __slots__ = ("agent", "local_world_size", "min_nodes", "max_nodes", "after", "failure")
    AGENT_FIELD_NUMBER: _ClassVar[int]
    LOCAL_WORLD_SIZE_FIELD_NUMBER: _ClassVar[int]
    MIN_NODES_FIELD_NUMBER: _ClassVar[int]
    MAX_NODES_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    agent: str
    local_world_size: int
    min_nodes: int
    max_nodes: int
    after: Generation
    failure: str
    def __init__(self, agent: _Optional[str] = ..., local_world_size: _Optional[int] = ..., min_nodes: _Optional[int] = ..., max_nodes: _Optional[int] = ..., after: _Optional[_Union[Generation, _Mapping]] = ..., failure: _Optional[str] = ...) -> None: ...

class Member(_message.Message):
    __slots__ = ("agent", "generation", "node_rank", "num_nodes", "local_world_size", "min_nodes", "max_nodes")
    AGENT_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    NODE_RANK_FIELD_NUMBER: _ClassVar[int]
    NUM_NODES_FIELD_NUMBER: _ClassVar[int]
    LOCAL_WORLD_SIZE_FIELD_NUMBER: _ClassVar[int]
    MIN_NODES_FIELD_NUMBER: _ClassVar[int]
    MAX_NODES_FIELD_NUMBER: _ClassVar[int]
    agent: str
    generation: Generation
    node_rank: int
    num_nodes: int
    local_world_size: int
    min_nodes: int
    max_nodes: int
    def __init__(self, agent: _Optional[str] = ..., generation: _Optional[_Union[Generation, _Mapping]] = ..., node_rank: _Optional[int] = ..., num_nodes: _Optional[int] = ..., local_world_size: _Optional[int] = ..., min_nodes: _Optional[int] = ..., max_nodes: _Optional[int] = ...) -> None: ...

class AgentGone(_message.Message):
    __slots__ = ("agent", "failed", "reason")
    AGENT_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    agent: str
    failed: bool
    reason: str
    def __init__(self, agent: _Optional[str] = ..., failed: bool = ..., reason: _Optional[str] = ...) -> None: ...

class RankUp(_message.Message):
    __slots__ = ("generation", "world_key", "rank", "world_size", "process", "base_seq", "ready")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    WORLD_KEY_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    WORLD_SIZE_FIELD_NUMBER: _ClassVar[int]
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    BASE_SEQ_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    generation: Generation
    world_key: str
    rank: int
    world_size: int
    process: str
    base_seq: int
    ready: bool
    def __init__(self, generation: _Optional[_Union[Generation, _Mapping]] = ..., world_key: _Optional[str] = ..., rank: _Optional[int] = ..., world_size: _Optional[int] = ..., process: _Optional[str] = ..., base_seq: _Optional[int] = ..., ready: bool = ...) -> None: ...

class RankGone(_message.Message):
    __slots__ = ("generation", "world_key", "rank", "process", "reason")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    WORLD_KEY_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    generation: Generation
    world_key: str
    rank: int
    process: str
    reason: str
    def __init__(self, generation: _Optional[_Union[Generation, _Mapping]] = ..., world_key: _Optional[str] = ..., rank: _Optional[int] = ..., process: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class RestoreAsk(_message.Message):
    __slots__ = ("generation", "rank")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    generation: Generation
    rank: int
    def __init__(self, generation: _Optional[_Union[Generation, _Mapping]] = ..., rank: _Optional[int] = ...) -> None: ...

class RestoreReport(_message.Message):
    __slots__ = ("generation", "rank", "error", "corrupt")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    CORRUPT_FIELD_NUMBER: _ClassVar[int]
    generation: Generation
    rank: int
    error: str
    corrupt: bool
    def __init__(self, generation: _Optional[_Union[Generation, _Mapping]] = ..., rank: _Optional[int] = ..., error: _Optional[str] = ..., corrupt: bool = ...) -> None: ...

class Sealed(_message.Message):
    __slots__ = ("attempt", "rank")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    attempt: Attempt
    rank: int
    def __init__(self, attempt: _Optional[_Union[Attempt, _Mapping]] = ..., rank: _Optional[int] = ...) -> None: ...

class Missed(_message.Message):
    __slots__ = ("attempt", "rank", "reason")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    attempt: Attempt
    rank: int
    reason: str
    def __init__(self, attempt: _Optional[_Union[Attempt, _Mapping]] = ..., rank: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class Uploaded(_message.Message):
    __slots__ = ("attempt", "ranks", "part")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    attempt: Attempt
    ranks: _containers.RepeatedScalarFieldContainer[int]
    part: bytes
    def __init__(self, attempt: _Optional[_Union[Attempt, _Mapping]] = ..., ranks: _Optional[_Iterable[int]] = ..., part: _Optional[bytes] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ("generation", "rank")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    generation: Generation
    rank: int
    def __init__(self, generation: _Optional[_Union[Generation, _Mapping]] = ..., rank: _Optional[int] = ...) -> None: ...

class KvSet(_message.Message):
    __slots__ = ("generation", "key", "value")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    generation: Generation
    key: str
    value: bytes
    def __init__(self, generation: _Optional[_Union[Generation, _Mapping]] = ..., key: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...

class KvAdd(_message.Message):
    __slots__ = ("id", "generation", "key", "total", "agent")
    ID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    id: int
    generation: Generation
    key: str
    total: int
    agent: str
    def __init__(self, id: _Optional[int] = ..., generation: _Optional[_Union[Generation, _Mapping]] = ..., key: _Optional[str] = ..., total: _Optional[int] = ..., agent: _Optional[str] = ...) -> None: ...

class KvGet(_message.Message):
    __slots__ = ("id", "generation", "key")
    ID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    id: int
    generation: Generation
    key: str
    def __init__(self, id: _Optional[int] = ..., generation: _Optional[_Union[Generation, _Mapping]] = ..., key: _Optional[str] = ...) -> None: ...

class Goodbye(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("epoch", "heartbeat_seconds", "lease_seconds", "genesis")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LEASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    GENESIS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    heartbeat_seconds: float
    lease_seconds: float
    genesis: bytes
    def __init__(self, epoch: _Optional[int] = ..., heartbeat_seconds: _Optional[float] = ..., lease_seconds: _Optional[float] = ..., genesis: _Optional[bytes] = ...) -> None: ...

class Formed(_message.Message):
    __slots__ = ("generation", "node_rank", "num_nodes", "world_size", "world_key")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    NODE_RANK_FIELD_NUMBER: _ClassVar[int]
    NUM_NODES_FIELD_NUMBER: _ClassVar[int]
    WORLD_SIZE_FIELD_NUMBER: _ClassVar[int]
    WORLD_KEY_FIELD_NUMBER: _ClassVar[int]
    generation: Generation
    node_rank: int
    num_nodes: int
    world_size: int
    world_key: str
    def __init__(self, generation: _Optional[_Union[Generation, _Mapping]] = ..., node_rank: _Optional[int] = ..., num_nodes: _Optional[int] = ..., world_size: _Optional[int] = ..., world_key: _Optional[str] = ...) -> None: ...

class Regroup(_message.Message):
    __slots__ = ("generation", "reason")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    generation: Generation
    reason: str
    def __init__(self, generation: _Optional[_Union[Generation, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...

class Complete(_message.Message):
    __slots__ = ("reason", "failed", "agent")
    REASON_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    reason: str
    failed: bool
    agent: str
    def __init__(self, reason: _Optional[str] = ..., failed: bool = ..., agent: _Optional[str] = ...) -> None: ...

class RestoreTarget(_message.Message):
    __slots__ = ("generation", "seq_plus_one", "step", "manifest", "loss")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    SEQ_PLUS_ONE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    generation: Generation
    seq_plus_one: int
    step: int
    manifest: str
    loss: str
    def __init__(self, generation: _Optional[_Union[Generation, _Mapping]] = ..., seq_plus_one: _Optional[int] = ..., step: _Optional[int] = ..., manifest: _Optional[str] = ..., loss: _Optional[str] = ...) -> None: ...

class RestoreGo(_message.Message):
    __slots__ = ("generation",)
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    generation: Generation
    def __init__(self, generation: _Optional[_Union[Generation, _Mapping]] = ...) -> None: ...

class RestoreFailed(_message.Message):
    __slots__ = ("generation", "reason")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    generation: Generation
    reason: str
    def __init__(self, generation: _Optional[_Union[Generation, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...

class Schedule(_message.Message):
    __slots__ = ("generation", "first", "every")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    EVERY_FIELD_NUMBER: _ClassVar[int]
    generation: Generation
    first: int
    every: int
    def __init__(self, generation: _Optional[_Union[Generation, _Mapping]] = ..., first: _Optional[int] = ..., every: _Optional[int] = ...) -> None: ...

class Release(_message.Message):
    __slots__ = ("before",)
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    before: Snapshot
    def __init__(self, before: _Optional[_Union[Snapshot, _Mapping]] = ...) -> None: ...

class Committed(_message.Message):
    __slots__ = ("attempt", "seq")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    attempt: Attempt
    seq: int
    def __init__(self, attempt: _Optional[_Union[Attempt, _Mapping]] = ..., seq: _Optional[int] = ...) -> None: ...

class Aborted(_message.Message):
    __slots__ = ("attempt", "reason")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    attempt: Attempt
    reason: str
    def __init__(self, attempt: _Optional[_Union[Attempt, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...

class KvValue(_message.Message):
    __slots__ = ("id", "value", "found")
    ID_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    FOUND_FIELD_NUMBER: _ClassVar[int]
    id: int
    value: bytes
    found: bool
    def __init__(self, id: _Optional[int] = ..., value: _Optional[bytes] = ..., found: bool = ...) -> None: ...

class Refused(_message.Message):
    __slots__ = ("code", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class Bases(_message.Message):
    __slots__ = ("seqs",)
    SEQS_FIELD_NUMBER: _ClassVar[int]
    seqs: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, seqs: _Optional[_Iterable[int]] = ...) -> None: ...

class Waiting(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: str
    def __init__(self, job: _Optional[str] = ...) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("job", "epoch", "in_office_seconds", "phase", "why", "world", "nodes", "waiting", "troubles", "newest", "snapshots")
    JOB_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    IN_OFFICE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    WORLD_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    TROUBLES_FIELD_NUMBER: _ClassVar[int]
    NEWEST_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOTS_FIELD_NUMBER: _ClassVar[int]
    job: str
    epoch: int
    in_office_seconds: float
    phase: str
    why: str
    world: World
    nodes: _containers.RepeatedCompositeFieldContainer[NodeStatus]
    waiting: _containers.RepeatedCompositeFieldContainer[Wait]
    troubles: _containers.RepeatedCompositeFieldContainer[Trouble]
    newest: Newest
    snapshots: _containers.RepeatedCompositeFieldContainer[OpenSnapshot]
    def __init__(self, job: _Optional[str] = ..., epoch: _Optional[int] = ..., in_office_seconds: _Optional[float] = ..., phase: _Optional[str] = ..., why: _Optional[str] = ..., world: _Optional[_Union[World, _Mapping]] = ..., nodes: _Optional[_Iterable[_Union[NodeStatus, _Mapping]]] = ..., waiting: _Optional[_Iterable[_Union[Wait, _Mapping]]] = ..., troubles: _Optional[_Iterable[_Union[Trouble, _Mapping]]] = ..., newest: _Optional[_Union[Newest, _Mapping]] = ..., snapshots: _Optional[_Iterable[_Union[OpenSnapshot, _Mapping]]] = ...) -> None: ...

class World(_message.Message):
    __slots__ = ("generation", "world_size", "nodes", "seconds", "furthest_step", "step_seconds", "first_snapshot", "every_steps", "no_snapshots")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    WORLD_SIZE_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    FURTHEST_STEP_FIELD_NUMBER: _ClassVar[int]
    STEP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    FIRST_SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    EVERY_STEPS_FIELD_NUMBER: _ClassVar[int]
    NO_SNAPSHOTS_FIELD_NUMBER: _ClassVar[int]
    generation: Generation
    world_size: int
    nodes: _containers.RepeatedScalarFieldContainer[str]
    seconds: float
    furthest_step: int
    step_seconds: float
    first_snapshot: int
    every_steps: int
    no_snapshots: str
    def __init__(self, generation: _Optional[_Union[Generation, _Mapping]] = ..., world_size: _Optional[int] = ..., nodes: _Optional[_Iterable[str]] = ..., seconds: _Optional[float] = ..., furthest_step: _Optional[int] = ..., step_seconds: _Optional[float] = ..., first_snapshot: _Optional[int] = ..., every_steps: _Optional[int] = ..., no_snapshots: _Optional[str] = ...) -> None: ...

class NodeStatus(_message.Message):
    __slots__ = ("node", "state", "why", "ranks", "step", "free_slots", "silent_seconds", "report")
    NODE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    FREE_SLOTS_FIELD_NUMBER: _ClassVar[int]
    SILENT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    node: str
    state: str
    why: str
    ranks: _containers.RepeatedScalarFieldContainer[int]
    step: int
    free_slots: int
    silent_seconds: float
    report: NodeReport
    def __init__(self, node: _Optional[str] = ..., state: _Optional[str] = ..., why: _Optional[str] = ..., ranks: _Optional[_Iterable[int]] = ..., step: _Optional[int] = ..., free_slots: _Optional[int] = ..., silent_seconds: _Optional[float] = ..., report: _Optional[_Union[NodeReport, _Mapping]] = ...) -> None: ...

class Wait(_message.Message):
    __slots__ = ("topic", "reason", "seconds")
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    topic: str
    reason: str
    seconds: float
    def __init__(self, topic: _Optional[str] = ..., reason: _Optional[str] = ..., seconds: _Optional[float] = ...) -> None: ...

class Newest(_message.Message):
    __slots__ = ("seq", "step", "seconds", "manifest")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    seq: int
    step: int
    seconds: float
    manifest: str
    def __init__(self, seq: _Optional[int] = ..., step: _Optional[int] = ..., seconds: _Optional[float] = ..., manifest: _Optional[str] = ...) -> None: ...

class OpenSnapshot(_message.Message):
    __slots__ = ("step", "generation", "sealed", "uploaded", "seconds")
    STEP_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    UPLOADED_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    step: int
    generation: Generation
    sealed: int
    uploaded: int
    seconds: float
    def __init__(self, step: _Optional[int] = ..., generation: _Optional[_Union[Generation, _Mapping]] = ..., sealed: _Optional[int] = ..., uploaded: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...

class EventsRequest(_message.Message):
    __slots__ = ("job", "epoch", "after", "follow")
    JOB_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    job: str
    epoch: int
    after: int
    follow: bool
    def __init__(self, job: _Optional[str] = ..., epoch: _Optional[int] = ..., after: _Optional[int] = ..., follow: bool = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("epoch", "number", "unix_seconds", "kind", "text", "missed")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    UNIX_SECONDS_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    MISSED_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    number: int
    unix_seconds: float
    kind: str
    text: str
    missed: int
    def __init__(self, epoch: _Optional[int] = ..., number: _Optional[int] = ..., unix_seconds: _Optional[float] = ..., kind: _Optional[str] = ..., text: _Optional[str] = ..., missed: _Optional[int] = ...) -> None: ...

class DaemonStatus(_message.Message):
    __slots__ = ("node", "incarnation", "version", "seconds", "store", "jobs", "troubles", "arena_bytes", "arena_limit_bytes")
    NODE_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    STORE_FIELD_NUMBER: _ClassVar[int]
    JOBS_FIELD_NUMBER: _ClassVar[int]
    TROUBLES_FIELD_NUMBER: _ClassVar[int]
    ARENA_BYTES_FIELD_NUMBER: _ClassVar[int]
    ARENA_LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    node: str
    incarnation: str
    version: str
    seconds: float
    store: str
    jobs: _containers.RepeatedCompositeFieldContainer[JobOnNode]
    troubles: _containers.RepeatedCompositeFieldContainer[Trouble]
    arena_bytes: int
    arena_limit_bytes: int
    def __init__(self, node: _Optional[str] = ..., incarnation: _Optional[str] = ..., version: _Optional[str] = ..., seconds: _Optional[float] = ..., store: _Optional[str] = ..., jobs: _Optional[_Iterable[_Union[JobOnNode, _Mapping]]] = ..., troubles: _Optional[_Iterable[_Union[Trouble, _Mapping]]] = ..., arena_bytes: _Optional[int] = ..., arena_limit_bytes: _Optional[int] = ...) -> None: ...

class JobOnNode(_message.Message):
    __slots__ = ("job", "coordinator", "connected", "ranks", "report", "agent")
    JOB_FIELD_NUMBER: _ClassVar[int]
    COORDINATOR_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    job: str
    coordinator: str
    connected: bool
    ranks: _containers.RepeatedCompositeFieldContainer[RankOnNode]
    report: NodeReport
    agent: bool
    def __init__(self, job: _Optional[str] = ..., coordinator: _Optional[str] = ..., connected: bool = ..., ranks: _Optional[_Iterable[_Union[RankOnNode, _Mapping]]] = ..., report: _Optional[_Union[NodeReport, _Mapping]] = ..., agent: bool = ...) -> None: ...

class RankOnNode(_message.Message):
    __slots__ = ("rank", "world_size", "generation", "step", "free_slots")
    RANK_FIELD_NUMBER: _ClassVar[int]
    WORLD_SIZE_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    FREE_SLOTS_FIELD_NUMBER: _ClassVar[int]
    rank: int
    world_size: int
    generation: Generation
    step: int
    free_slots: int
    def __init__(self, rank: _Optional[int] = ..., world_size: _Optional[int] = ..., generation: _Optional[_Union[Generation, _Mapping]] = ..., step: _Optional[int] = ..., free_slots: _Optional[int] = ...) -> None: ...
