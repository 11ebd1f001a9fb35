"""Damage to files, of the kinds that disks, networks and enemies do. Seeded: a case that fails can
be made again."""

from __future__ import annotations

import random
from collections.abc import Callable

Damage = Callable[[bytearray, random.Random], bytearray]
_LIES = (0, 1, 0x7F, 0xFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF)


def mutate(data: bytes, seed: int) -> tuple[bytes, str]:
    """Return damaged bytes, never the same ones, and the kind of damage."""
    rng = random.Random(seed)
    while True:
        damage = rng.choice(DAMAGES)
        mutated = bytes(damage(bytearray(data), rng))
        if mutated != data:
            return mutated, damage.__name__


def flip_bytes(data: bytearray, rng: random.Random) -> bytearray:
    """Give up to eight bytes another value."""
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return data


def flip_bit(data: bytearray, rng: random.Random) -> bytearray:
    """Turn one bit over."""
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def truncate(data: bytearray, rng: random.Random) -> bytearray:
    """Cut the end off."""
    return data[: rng.randrange(len(data))]


def cut_out(data: bytearray, rng: random.Random) -> bytearray:
    """Take a piece out of the middle."""
    start = rng.randrange(len(data))
    del data[start : start + rng.randint(1, 64)]
    return data


def splice(data: bytearray, rng: random.Random) -> bytearray:
    """Put a copy of one piece in another place."""
    start, place = rng.randrange(len(data)), rng.randrange(len(data))
    data[place:place] = data[start : start + rng.randint(1, 256)]
    return data


def blank(data: bytearray, rng: random.Random) -> bytearray:
    """Overwrite a stretch with zeros, as a lost block is."""
    start = rng.randrange(len(data))
    length = min(rng.choice([16, 512, 4096]), len(data) - start)
    data[start : start + length] = bytes(length)
    return data


def lie(data: bytearray, rng: random.Random) -> bytearray:
    """Overwrite a number near the beginning or the end, where formats keep sizes, with an extreme
    one."""
    width, order = rng.choice([1, 2, 4, 8]), rng.choice(["little", "big"])
    value = (rng.choice(_LIES) % (1 << 8 * width)).to_bytes(width, order)  # type: ignore[arg-type]
    near = rng.randrange(min(len(data), 256))
    start = rng.choice([near, max(0, len(data) - 1 - near)])
    data[start : start + width] = value
    return data


DAMAGES: tuple[Damage, ...] = (flip_bytes, flip_bit, truncate, cut_out, splice, blank, lie)
