"""The messages between a trainer or agent and its daemon (PROTOCOLS 2 and 5), and their msgpack form.

A message is a frozen dataclass. On the wire it is ``[class name, {field: value}]``. Decoding checks every field's type against
the annotation and bounds the total size; whatever doesn't fit is a ProtocolError. A request carries an ``id`` which its reply
repeats; messages without an id are events.

They stand in `hello`, `saving`, `restoring` and `agents`; `coding` makes bytes of them.

    trainer → daemon                         daemon → trainer
    Hello(role=trainer) + pidfd              Welcome | Refused
    Register(id)                             Registered(id) + arena descriptor | Failed(id)
    Resume(id)                               Resumed(id) | Failed(id)
    Sealed, Missed                           Released, Durable, Aborted
    RestoreAsk(id)                           RestoreInfo(id) | Failed(id)
    RestoreRead(id)                          RestoreRing + ring descriptor, RestoreFrames…, RestoreEnd(id) | Failed(id)
    RestoreCredit
    RestoreReport(id)                        Ok(id) once every rank has reported its part verified | Failed(id)
    Finished(id)                             Ok(id) | Failed(id)
    Enter, Vacate
                                             Notice

    reader → daemon                          daemon → reader
    Hello(role=reader) + pidfd               Welcome | Refused
    ReadOpen(id)                             ReadInfo(id) | Failed(id)
    ReadList(id)                             ReadListed(id) | Failed(id)
    RestoreRead(id), RestoreCredit           as to a trainer

    anybody of this user → daemon            daemon → it
    StatusAsk, instead of Hello              StatusInfo, and the end

    agent → daemon                           daemon → agent
    Hello(role=agent) + pidfd                Welcome | Refused
    Join(id)                                 Formed(id) | Complete | Failed(id)
    World (its place in a generation and the master address that it gave its workers)
    KvSet(id), KvAdd(id), KvGet(id)          KvValue(id) | Failed(id)
    Leave                                    Waiting, Regroup, Complete
"""
