"""The run folder: what a run writes as it progresses, what it resumes from, and what reports read."""

from fedquilt.record.client_table import clients_of
from fedquilt.record.files import write_json
from fedquilt.record.folder import Record
from fedquilt.record.lock import Hold, hold, holder
from fedquilt.record.read import read_config, read_environment, read_partition, read_result, read_rounds
from fedquilt.record.software_versions import environment
from fedquilt.record.tree_bytes import tree_from_bytes, tree_to_bytes

__all__ = [
    "Hold",
    "Record",
    "clients_of",
    "environment",
    "hold",
    "holder",
    "read_config",
    "read_environment",
    "read_partition",
    "read_result",
    "read_rounds",
    "tree_from_bytes",
    "tree_to_bytes",
    "write_json",
]
