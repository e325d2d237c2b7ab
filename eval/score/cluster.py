"""Score batches on a Ray cluster: actors that hold the float model each."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager

from codec.cache import source_hash
from codec.console import Advance
from codec.text.cluster.connection import connect, import_ray
from codec.text.cluster.pool import Answer, Pool, Task
from eval.score.batches import GPU_LOGITS, MAX_LOGITS, Request, Row, Runner, Scorer
from eval.score.models import LoadedModel


class ScoringActor:
    """A float model on one device, as a Ray actor.

    Args:
        loaded: the model.
        kind: cpu or cuda.
        threads: of the processor, which Ray has told torch already.
    """

    def __init__(self, loaded: LoadedModel, kind: str, threads: int):
        self._scorer = Scorer(loaded.float_model(kind))

    def start(self) -> Answer[str]:
        """Return the hash of the sources; see `codec.text.cluster.pool.Startable`."""
        return source_hash(), None

    def rows(self, rows: Sequence[Row], length: int) -> Answer[list[float]]:
        """Score rows; see `eval.score.batches.Scorer`."""
        return self._scorer.rows(rows, length), None

    def documents(self, rows: Sequence[Row]) -> Answer[list[float]]:
        """Score documents; see `eval.score.batches.Scorer`."""
        return self._scorer.documents(rows), None


@contextmanager
def runner_on(loaded: LoadedModel, address: str, advance: Advance) -> Iterator[Runner]:
    """Connect to a cluster while the block runs, which receives what scores batches on its GPUs or else its processors.

    Args:
        loaded: the model.
        address: as of `codec.text.cluster.connection.connect`.
        advance: called with 0 now and then.

    Raises:
        CodecError: as of `codec.text.cluster.pool.Pool.in_order`.
    """
    disconnect = connect(address, 1)
    try:
        kind = "cuda" if import_ray().cluster_resources().get("GPU") else "cpu"
        pool = Pool(ScoringActor, loaded, [kind], address)

        def run(requests: Iterator[Request]) -> Iterator[tuple[Request, list[float]]]:
            with closing(pool.in_order((Task(*request) for request in requests), advance)) as answers:
                for task, nats in answers:
                    yield Request(task.method, task.arguments), nats

        yield Runner(GPU_LOGITS if kind == "cuda" else MAX_LOGITS, run)
    finally:
        disconnect()
