"""DARE: values dropped at random, the rest divided by the density, so that the expectation stays what it was.

Whether a value is kept depends on the seed, on which source it is of, and on its place in it; not on who else is
combined, nor on what is computed together. The numbers are Philox's (Salmon et al., 2011, Parallel random numbers: as
easy as 1, 2, 3), which gives those of any place without those before.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Key = tuple[int, int]

# Numbers of 32 bits of one block of Philox: four words of 64 bits.
_BLOCK = 8


def drop_key(seed: int, *source: str) -> Key:
    """Return the key of the numbers of one source: a hash of the seed and of what tells the source from others."""
    text = "\n".join((str(seed), *source))
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little")


def kept(key: Key, first: int, number: int, density: float) -> NDArray[np.bool_]:
    """Return which of a source's values are kept, from place `first` on, shape (number,); each with the density."""
    from numpy.random import Philox

    generator = Philox(key=np.array(key, dtype=np.uint64))
    generator.advance(first // _BLOCK)
    before = first % _BLOCK
    words = generator.random_raw((before + number + 1) // 2)
    numbers = words.astype("<u8", copy=False).view("<u4")[before : before + number]
    chosen: NDArray[np.bool_] = numbers < round(density * 2**32)
    return chosen


def drop(values: Float32, key: Key, first: int, density: float, rescale: bool = True) -> None:
    """Drop values and divide the others by the density, in place.

    Parameters
    ----------
    values
        Of the source, from place `first` on, shape (m,).
    rescale
        Whether the others are divided at all.
    """
    values[~kept(key, first, len(values), density)] = 0
    if rescale:
        values /= np.float32(density)
