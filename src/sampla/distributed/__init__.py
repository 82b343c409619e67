"""Data over several processes; the only user of torch.distributed."""

from sampla.distributed._ranks import Held, RankError, Ranks, refuse_spread, together
from sampla.distributed._shards import (
    Shard,
    ToldLoader,
    as_shard,
    as_whole,
    is_first,
    ranks_of,
    refuse_parts,
    shard,
    unwrapped,
)
from sampla.distributed._slices import Slices

__all__ = [
    "Held", "RankError", "Ranks", "Shard", "Slices", "ToldLoader", "as_shard", "as_whole", "is_first", "ranks_of",
    "refuse_parts", "refuse_spread", "shard", "together", "unwrapped",
]  # fmt: skip
