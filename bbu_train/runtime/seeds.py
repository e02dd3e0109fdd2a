"""Random generators that depend on the purpose of a draw, never on how many draws came before."""

import hashlib

import numpy as np


def generator(*key: int | str) -> np.random.Generator:
    """Return a generator that depends on `key` alone, such as `("teachers", seed, epoch, sample_id)`.

    Equal keys give equal draws in any process, on any rank, in any order and on any platform.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))
