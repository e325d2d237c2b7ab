"""Number the elements of runs, without a loop over the runs."""

import numpy as np
from numpy.typing import NDArray


def runs(begins: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the numbers from each begin on, as many as its count says, run behind run: int64 [sum of counts].

    >>> runs(np.array([5, 20, 7]), np.array([3, 0, 2])).tolist()
    [5, 6, 7, 7, 8]
    """
    ends = counts.cumsum()
    return np.arange(counts.sum()) + np.repeat(begins - ends + counts, counts)
