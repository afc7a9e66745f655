"""ONNX Runtime: where the CNN twin runs."""

import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from spikeport.core.errors import SpikeportError
from spikeport.core.files import read_json, tuples, write_json
from spikeport.core.progress import Progress, silent
from spikeport.core.runs import Run
from spikeport.core.settings import check_types
from spikeport.export import ONNX_FILE
from spikeport.export.onnx_model import int8_path, open_onnx
from spikeport.export.verify import Certificate, require_own_weights
from spikeport.targets.base import check_labels, pick_engine
from spikeport.targets.record import samples_digest

LATENCY_RUNS = 30
BATCH = 64


@dataclass(frozen=True)
class OnnxRecord:
    """What a run showed.

    Attributes:
        predictions: class of every sample.
        accuracy: top-1, or None without labels.
        latency_ms: median milliseconds of one image alone (batch 1), over LATENCY_RUNS runs.
        threads: threads of one operator; 0 lets ONNX Runtime choose.
        int8: ``accuracy`` and ``latency_ms`` of the 8-bit form beside the file, and ``agreement``, the share of samples
            to which both give the same class; None where there is no such form.
        samples_digest: which samples these were.
        weights_sha256: of the run's weights file that the network was exported from; None where it is of no run.
    """

    engine: str
    samples: int
    predictions: tuple[int, ...]
    accuracy: float | None
    latency_ms: float
    threads: int
    version: str
    int8: dict[str, float | None] | None = None
    samples_digest: str | None = None
    weights_sha256: str | None = None

    def save(self, path: Path) -> None:
        write_json(path, asdict(self))

    def __post_init__(self) -> None:
        check_types(self)
        numbers = {"accuracy", "latency_ms", "agreement"}
        if self.int8 is not None and (set(self.int8) != numbers or any(isinstance(v, str) for v in self.int8.values())):
            raise SpikeportError(f"int8 is {self.int8}; expected the numbers {', '.join(sorted(numbers))}")

    @staticmethod
    def load(path: Path) -> "OnnxRecord":
        try:
            return OnnxRecord(**tuples(read_json(path)))
        except (TypeError, AttributeError, SpikeportError) as error:
            raise SpikeportError(f"{path}: not a record of ONNX Runtime ({error}); simulate again") from None


class OnnxTarget:
    """See ``spikeport.targets.base.Target``; takes a CNN as an ONNX file, which is its program too."""

    name = "onnx"
    kind = "cnn"
    engines: tuple[str, ...] = ("onnxruntime",)
    file = ONNX_FILE
    record = "record.json"
    help = "ONNX Runtime on the CPU: accuracy and latency of the CNN twin"

    def compile(self, source: Any, program: Path, calibration: np.ndarray | None = None) -> Any:
        raise SpikeportError("an ONNX file needs no compiling; `spikeport simulate RUN --target onnx` runs it")

    def check(self, source: Any, chip: str | None = None, calibration: np.ndarray | None = None) -> Any:
        raise SpikeportError("ONNX Runtime has no limits to check; `spikeport simulate RUN --target onnx` runs it")

    def simulate(
        self,
        program: Path,
        x: np.ndarray,
        labels: np.ndarray | None = None,
        engine: str | None = None,
        progress: Progress = silent,
        run: Run | None = None,
        **options: Any,
    ) -> OnnxRecord:
        pick_engine(self, engine)
        if options:
            raise SpikeportError(f"target onnx has no option {', '.join(options)}; leave it out")
        session = open_onnx(program)
        weights = None
        if run is not None:
            weights = Certificate.load(program).weights_sha256
            require_own_weights(weights, run, program, self.name)
        wanted = session.get_inputs()[0]
        if len(x) == 0:
            raise SpikeportError("zero samples to run; give at least one")
        if x.ndim != len(wanted.shape) or tuple(x.shape[1:]) != tuple(wanted.shape[1:]):
            raise SpikeportError(f"samples have shape {list(x.shape)}, the model takes {list(wanted.shape)}")
        classes = session.get_outputs()[0].shape[-1]
        check_labels(labels, len(x), classes if isinstance(classes, int) else sys.maxsize)
        with np.errstate(over="ignore"):
            x = np.asarray(x, np.float32)
        if not np.isfinite(x).all():
            raise SpikeportError("the samples hold NaN, infinity or values beyond float32; leave those out")
        predictions, latency = _run(session, x, progress)
        quantised = int8_path(program)
        return OnnxRecord(
            engine="onnxruntime",
            samples=len(x),
            predictions=tuple(int(p) for p in predictions),
            accuracy=_accuracy(predictions, labels),
            latency_ms=latency,
            threads=session.get_session_options().intra_op_num_threads,
            version=onnxruntime.__version__,
            int8=_run_int8(open_onnx(quantised), x, labels, predictions) if quantised.is_file() else None,
            samples_digest=samples_digest(x),
            weights_sha256=weights,
        )


def _run(session: Any, x: np.ndarray, progress: Progress = silent) -> tuple[np.ndarray, float]:
    """Classes of all samples, and the median milliseconds of one image alone."""
    name = session.get_inputs()[0].name
    logits = []
    for start in range(0, len(x), BATCH):
        logits.append(session.run(None, {name: x[start : start + BATCH]})[0])
        progress(min(start + BATCH, len(x)), len(x))
    times = []
    for _ in range(LATENCY_RUNS):
        begin = time.perf_counter()
        session.run(None, {name: x[:1]})
        times.append(time.perf_counter() - begin)
    return np.concatenate(logits).argmax(1), float(np.median(times)) * 1e3


def _run_int8(session: Any, x: np.ndarray, labels: np.ndarray | None, expected: np.ndarray) -> dict[str, float | None]:
    predictions, latency = _run(session, x)
    agreement = float((predictions == expected).mean())
    return {"accuracy": _accuracy(predictions, labels), "latency_ms": latency, "agreement": agreement}


def _accuracy(predictions: np.ndarray, labels: np.ndarray | None) -> float | None:
    return None if labels is None else float((predictions == labels).mean())
