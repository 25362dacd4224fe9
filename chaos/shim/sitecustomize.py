"""Loaded by every Python process that has this directory in its PYTHONPATH: only those of a campaign have.

CHAOS_BUG names a bug of `chaos.bugs` to have; CHAOS_RECORDS a directory in which to note fsync, link and rename.
"""

import os

if os.environ.get("CHAOS_RECORDS"):
    from chaos import records

    records.start(os.environ["CHAOS_RECORDS"])
if os.environ.get("CHAOS_BUG"):
    from chaos import bugs

    bugs.infect(os.environ["CHAOS_BUG"])
