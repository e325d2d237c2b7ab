"""Compare golden parts of a pack with what this machine makes of their integers and bytes.

`codec.text.golden` does the same for archives, and says why.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from codec import compiled
from codec.errors import CodecError
from codec.pack.parts.part import decode_exact, decode_quantized, exact_part, quantized_part, read_part
from codec.quantization.quantized import OnTrellis, Quantized, StepGrid
from codec.quantization.trellis import transitions

_ROWS, _COLUMNS, _STATES = 24, 16, 8

PARTS = {
    "by grid": bytes.fromhex(
        "020000003ffbff000008000f001141fef69861148df6a00269d4ecfa8e5425ffb7c00081b6020afec132eef06cfa4389c877"
        "6dd7cefee326131b6984efec13fecb07095b2324beb0815741b29280db91fa109f459b1e09129fd63ccbe3afa9c44752e5cd"
        "3d59466902bb2f4dfe139e49120d6a22c5a081439aa6bb770a295a01de4593bb1df43ed2207a7795ef7cca6a05d621d13b60"
        "940f1fdb867a1ea52ea3bb496c7e1af2c61857651b02f21f327bbdd14c54c9a35fcb6f06e2aaba226fd13ab59735826bbf0e"
        "aeaa50a00a"
    ),
    "by row": bytes.fromhex(
        "01000000000f7800e2077eb47318e4ac9d936de5ab4a65019ce850388bfc52d850074b51d684e3696a00151cf3012c3a6b38"
        "dd7a161aaeef02f2722ffa18ffbb67d2d758ef72c629d0841c4a00e891e8a007a5cea3e586a5b868dfe4071f03b7dfa633e5"
        "9bd28c9f69d13d782e6c0491c5bba30e30c8014b44716882cb021d0391b22170a9945ba7e56db76cac2da7fa55da61"
    ),
    "exact": bytes.fromhex(
        "000235000000787bc4b6f014bb2a3769dfd3db73a0e4f468062fa4385c457aa777e95024689ae87006b0cc0abb7af286ce19"
        "25935728ca9c75591f0000010000009e3cda7817b553f18f2ecc6a08a745e3811fbe5cfa9836d57311af4eec8a28c66503a1"
        "3fde7c1ab856f59331cf6d0caa48e68523c15ffd9c3ad87615b351ef8d2cca6806a443e17f1dbc5af89634d3710fad4bea88"
        "26c463019f3ddb7a18b654f3912fcd6b0aa846e48221bf5dfb9a38d67412b14fed8b2ac86604a241df7d1bb958f69432d16f"
        "0dab49e88624c260ff9d3bd97816b452f08f2dcb6908a644e2801fbd5bf99736d47210af4deb8927c66402a03fdd7b19b756"
        "f49230ce6d0ba947e68422c05efd9b39d77514b250ee8d2bc96705a442e07e1dbb59f79534d2700eac4be98725c462009e3c"
        "db7917b554f2902ecc6b09a745e38220be5cfb99000001000000376ea6dd154c84bbf32a6299d1084077afe61e558cc4fb33"
        "6aa2d9114880b7ef265e95cd043c73abe2195188c0f72f669ed50d447cb3eb225a91c900376fa6de154d84bcf32b629ad109"
        "4078afe71e568dc4fc336ba2da114980b8ef275e96cd053c74abe31a5189c0f82f679ed60d457cb4eb235a92c901386fa7de"
        "164d85bcf42b639ad2094178b0e71f568ec5fc346ba3da124981b8f0275f96ce053d74ace31b5289c1f830679fd60e457db4"
        "ec235b92ca013970a7df164e85bdf42c639bd20a4179b0e81f578ec6fd346ca3db124a81b9f0285f97ce063d75ace41b538a"
        "c1f930689fd70e467db5ec245b93ca023971a8df174e86bdf52c649bd30a4201b400000028b52ffd00005d050024090078f2"
        "6ce660da52cc46c03ab42ca6209a148e0880fa74ee68e25ad44ec842bc36ae28a21c961088027cf670ea64dc56d04ac43eb6"
        "30aa249e18920a84fee45ed838b2128c0666e040ba34940e6ee862c23c9c1690f06aca44be1e98f872ec4cc626a01a7af454"
        "ce482ea82282fc765cd650b02aa48a047ede58d2b832ac0c8600e660da3ab4148e0868e25cd650ca42bc361da8105abeff6f"
        "e07703803e6267f75b02f0743900520a42c1db5c"
    ),
}
"""The golden bytes of the parts of `_matrices` and of `_numbers`."""


def _matrices() -> dict[str, Quantized]:
    """Make a matrix with a step for each row and column and a trellis, and one with a step for each row."""
    wide = np.arange(_ROWS * _COLUMNS, dtype=np.int64).reshape(_ROWS, _COLUMNS) * 2_654_435_761 % (1 << 32)
    sizes = (wide >> 20) % 9 * (wide >> 24) % 5 * (1 + 60 * (wide % 31 == 0))
    signed = (np.where(wide >> 15 & 1, sizes, -sizes)).astype(np.int32)
    grid = StepGrid(0.5, np.arange(_ROWS, dtype=np.int32) % 11 - 5, np.arange(_COLUMNS, dtype=np.int32) % 7)
    on = OnTrellis(np.arange(_ROWS) % 9 != 4, np.arange(_COLUMNS) % 5 != 2)
    path, state, following = 2 * signed, 0, transitions(_STATES)
    for c in np.flatnonzero(on.columns):
        for r in np.flatnonzero(on.rows):
            path[r, c] = 2 * signed[r, c] + (state & 1)
            state = following[state, (path[r, c] >> 1) & 1]
    by_grid = Quantized(path, grid.row_steps(), grid.column_steps(), _STATES, grid, on)
    return {"by grid": by_grid, "by row": Quantized(signed[:, :7] * 9, np.ones(_ROWS, np.float32))}


def _numbers() -> NDArray[np.uint8]:
    """Make 256 float32 numbers whose exponents are worth a table."""
    wide = np.arange(256, dtype=np.uint32) * np.uint32(2_654_435_761)
    return ((wide >> 9) | (np.uint32(120) + (wide >> 5) % 5 * (wide >> 7) % 3) << 23).astype("<u4").view(np.uint8)


@cache
def check() -> None:
    """Encode and decode the golden parts, once in each process.

    Raises:
        CodecError: other bytes or integers come out than this version pins.
    """
    matrices, numbers = _matrices(), _numbers()
    made = {name: quantized_part(matrix) for name, matrix in matrices.items()}
    made["exact"] = exact_part(numbers, 4, True)
    for name, part in made.items():
        if part != PARTS[name]:
            raise CodecError(
                f"golden record of a part {name}: {len(part)} bytes {part.hex()}, expected {len(PARTS[name])} bytes "
                f"{PARTS[name].hex()}; this machine would misread packs: a source was changed, or its compiler or "
                "processor fails; install underpar again"
            )
    found = {name: decode_quantized(*read_part(PARTS[name]), *m.symbols.shape) for name, m in matrices.items()}
    same = all(np.array_equal(found[name].symbols, matrix.symbols) for name, matrix in matrices.items())
    if not same or not np.array_equal(decode_exact(read_part(PARTS["exact"])[1], len(numbers), 4, True), numbers):
        raise CodecError(
            "golden record of parts: other integers come out than went in; this machine's compiler or processor fails; "
            "install underpar again"
        )


@cache
def check_once() -> None:
    """Check the golden record unless an earlier process did so with the same sources; errors as of `check`."""
    compiled.check_once("parts", check)
