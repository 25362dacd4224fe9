"""PyTorch Distributed Checkpoint over ckptd: what `torch.distributed.checkpoint` is given in the place of its file system.

    dcp.save(state_dict, storage_writer=CkptdWriter("job", step=100))
    dcp.load(state_dict, storage_reader=CkptdReader("job"))

Importing this imports torch.
"""

from ckptd_client.dcp.reader import CkptdReader
from ckptd_client.dcp.stager import CkptdStager
from ckptd_client.dcp.writer import CkptdWriter

__all__ = ["CkptdReader", "CkptdStager", "CkptdWriter"]
