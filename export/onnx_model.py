"""The CNN twin as ONNX, in float32 and in 8-bit integers, verified in ONNX Runtime."""

import tempfile
import warnings
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import nn

from spikeport.core.errors import SpikeportError, reason
from spikeport.core.files import replacing
from spikeport.core.neurons import LIF, TimeMean
from spikeport.export.foreign import owner
from spikeport.export.logs import quiet, silence
from spikeport.export.trace import require_finite
from spikeport.export.verify import CERTIFICATE_FILE, Certificate, Witness, sha256

OPSET = 20
#: Largest difference of a logit between torch and ONNX Runtime, both float32, times max(1, the largest logit).
TOLERANCE = 1e-4
#: Images that calibration runs at once.
CALIBRATION_BATCH = 32


def export_onnx(model: nn.Module, path: Path, samples: np.ndarray, weights_sha256: str | None = None) -> Certificate:
    """Writes ``model`` ([N, C, H, W] to [N, K]) with a dynamic batch, after ONNX Runtime has run it on ``samples``.

    Args:
        weights_sha256: see ``Certificate``.

    Raises:
        SpikeportError: the model is no CNN, its weights are not finite, or it cannot be exported.
        CheckFailed: ONNX Runtime gives other logits or classes.
    """
    _require_cnn(model)
    require_finite(model)
    x = torch.from_numpy(np.asarray(samples, np.float32))
    if x.dim() == 0:
        raise SpikeportError("the samples are one number; give [N, C, H, W]")
    for batch in _batches(x):
        _logits(model, batch)
    with replacing(path) as temporary:
        try:
            with silence(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.onnx.export(
                    model,
                    (x[: min(2, len(x))],),
                    str(temporary),
                    dynamo=True,
                    opset_version=OPSET,
                    input_names=["input"],
                    output_names=["logits"],
                    dynamic_shapes=({0: torch.export.Dim("batch")},),
                    external_data=False,
                    verbose=False,
                )
        except Exception as error:  # torch.onnx raises many kinds
            cause = error.__cause__ or error  # the error itself tells of steps and reports
            raise SpikeportError(
                f"{type(model).__name__} cannot be exported to ONNX with a free batch: {reason(cause)}; its forward "
                "must depend neither on the data nor on the number of samples"
            ) from error
        certificate = replace(verify_onnx(temporary, path.name, model, x), weights_sha256=weights_sha256)
        certificate.require()
    certificate.save(path.with_name(CERTIFICATE_FILE))
    return certificate


def _require_cnn(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, (LIF, TimeMean)) or owner(module) is not None:
            raise SpikeportError(
                f"{name or 'the model'} ({type(module).__name__}): a spiking network has no ONNX form; export it with "
                "--target nir (or loihi)"
            )


def _batches(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Another number of samples than the trace is made with: one, and all of them twice and one again."""
    return x[:1], torch.cat([x, x, x[:1]])


def _logits(model: nn.Module, x: torch.Tensor) -> np.ndarray:
    """What the model gives for samples [N, ...]. Raises SpikeportError where that is no tensor [N, ...]."""
    where = f"{type(model).__name__} on {len(x)} samples of shape {list(x.shape[1:])}"
    try:
        with torch.no_grad():
            y = model(x)
    except Exception as error:  # the user's code may raise anything
        raise SpikeportError(
            f"{where} fails: {reason(error)}; it must take any number of samples of that shape"
        ) from error
    if not isinstance(y, torch.Tensor):
        raise SpikeportError(f"{where} gives a {type(y).__name__}; only one tensor of logits [N, K] is supported")
    if y.dim() != 2 or len(y) != len(x):
        raise SpikeportError(f"{where} gives a tensor of shape {list(y.shape)}; logits are [N, K]")
    logits: np.ndarray = y.numpy()
    return logits


def verify_onnx(path: Path, name: str, model: nn.Module, x: torch.Tensor) -> Certificate:
    """Runs the file on one sample, and on more than all of them: its batch is free."""
    expected = np.concatenate([_logits(model, batch) for batch in _batches(x)])
    try:
        found = np.concatenate([run_onnx(path, batch.numpy()) for batch in _batches(x)])
    except SpikeportError:
        raise
    except Exception as failure:  # onnxruntime raises its own kinds
        raise SpikeportError(
            f"{name}: ONNX Runtime does not run it with any number of samples ({reason(failure)})"
        ) from failure
    error, limit = float(np.abs(found - expected).max()), TOLERANCE * max(1.0, float(np.abs(expected).max()))
    agree = bool((found.argmax(1) == expected.argmax(1)).all())
    witness = Witness(
        reader=f"onnxruntime {version('onnxruntime')} (float32)",
        status="agrees" if error <= limit and agree else "differs",
        note=f"logits differ by {error:.3g} (limit {limit:.3g})",
        output_error=error,
        predictions_agree=agree,
    )
    return Certificate(name, sha256(path), len(x), (witness,))


def int8_path(path: Path) -> Path:
    """Where the 8-bit form of an ONNX file lies: beside it."""
    return path.with_suffix(".int8.onnx")


def quantise(path: Path, samples: np.ndarray) -> float:
    """Writes the 8-bit form of an exported file beside it (see ``int8_path``).

    Static quantisation in QDQ form: activations QUInt8, weights QInt8 with a scale per output channel, ranges as they
    occur on ``samples``.

    Args:
        samples: float [N, C, H, W], real ones, to calibrate on.

    Returns:
        The share of the samples to which both forms give the same class.

    Raises:
        SpikeportError: ONNX Runtime cannot quantise the file.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    x = np.asarray(samples, np.float32)

    class Batches(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter([{"input": x[k : k + CALIBRATION_BATCH]} for k in range(0, len(x), CALIBRATION_BATCH)])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.batches, None)

    with replacing(int8_path(path)) as temporary, tempfile.TemporaryDirectory() as folder, quiet("root"):
        prepared = Path(folder) / "prepared.onnx"
        try:
            quant_pre_process(str(path), str(prepared))
            quantize_static(
                str(prepared),
                str(temporary),
                Batches(),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
            )
        except Exception as error:  # onnxruntime raises its own kinds
            raise SpikeportError(f"{path}: cannot be quantised to int8 ({reason(error)})") from error
        return float((run_onnx(temporary, x).argmax(1) == run_onnx(path, x).argmax(1)).mean())


def open_onnx(path: Path) -> ort.InferenceSession:
    """Raises SpikeportError where the file is missing, damaged, or not ONNX."""
    if not path.is_file():
        raise SpikeportError(f"{path}: no such file; `spikeport export RUN --target onnx` writes one")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own kinds
        raise SpikeportError(f"{path}: damaged or not an ONNX model ({reason(error)}); export it again") from None


def run_onnx(path: Path, x: np.ndarray) -> np.ndarray:
    """Logits float32 [N, K] of float samples [N, C, H, W]."""
    session = open_onnx(path)
    logits: np.ndarray = session.run(None, {session.get_inputs()[0].name: np.asarray(x, np.float32)})[0]
    return logits
