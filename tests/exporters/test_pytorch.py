"""Models that PyTorch exports, by TorchScript and by dynamo, beside narrower PyTorch models of the kept weights."""

import io
import logging
import warnings
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import onnx
import pytest
from models import Array, normal, run
from narrowing import Case, Cut, Hidden, halved, keeps_of, narrowed, reasons, refit_helps

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812

logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision


# Models: the widths of the hidden layers are their arguments


class Mlp(nn.Module):
    def __init__(self, a: int = 24, b: int = 20) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(6, a), nn.Linear(a, b), nn.Linear(b, 3)

    def forward(self, x: Any) -> Any:
        return self.fc3(F.gelu(self.fc2(F.relu(self.fc1(x)))))


class Cnn(nn.Module):
    """Pooled, then flattened: 4 pixels of each channel become inputs of fc1."""

    def __init__(self, a: int = 8, b: int = 12, c: int = 10, *, flatten: Callable[[Any], Any]) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, a, 3, padding=1), nn.BatchNorm2d(a)
        self.conv2, self.norm2 = nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b)
        self.fc1, self.fc2 = nn.Linear(4 * b, c), nn.Linear(c, 3)
        self.flatten = flatten

    def forward(self, x: Any) -> Any:
        x = F.max_pool2d(F.relu(self.norm1(self.conv1(x))), 2)
        x = F.avg_pool2d(F.silu(self.norm2(self.conv2(x))), 2)
        return self.fc2(F.relu(self.fc1(self.flatten(x))))


class Depthwise(nn.Module):
    """Two separable convolutions, as in MobileNet."""

    def __init__(self, a: int = 8, b: int = 12) -> None:
        super().__init__()
        self.stem, self.norm1 = nn.Conv2d(3, a, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(a)
        self.depth1, self.norm2 = nn.Conv2d(a, a, 3, padding=1, groups=a, bias=False), nn.BatchNorm2d(a)
        self.point1, self.norm3 = nn.Conv2d(a, b, 1, bias=False), nn.BatchNorm2d(b)
        self.depth2, self.norm4 = nn.Conv2d(b, b, 3, padding=1, groups=b), nn.BatchNorm2d(b)
        self.head = nn.Linear(b, 3)

    def forward(self, x: Any) -> Any:
        x = F.relu6(self.norm1(self.stem(x)))
        x = F.hardswish(self.norm3(self.point1(F.relu6(self.norm2(self.depth1(x))))))
        return self.head(self.norm4(self.depth2(x)).mean((2, 3)))


class Residual(nn.Module):
    """A ResNet's stem and two blocks, the second with a projection in its shortcut."""

    def __init__(self, a: int = 8, b: int = 6, c: int = 10, d: int = 12) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, a, 3, padding=1, bias=False), nn.BatchNorm2d(a)
        self.conv1, self.norm1 = nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b)
        self.conv2, self.norm2 = nn.Conv2d(b, a, 3, padding=1, bias=False), nn.BatchNorm2d(a)
        self.conv3, self.norm3 = nn.Conv2d(a, c, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(c)
        self.conv4, self.norm4 = nn.Conv2d(c, d, 3, padding=1, bias=False), nn.BatchNorm2d(d)
        self.short, self.norm5 = nn.Conv2d(a, d, 1, stride=2, bias=False), nn.BatchNorm2d(d)
        self.head = nn.Linear(d, 3)

    def forward(self, x: Any) -> Any:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))
        x = F.relu(self.norm4(self.conv4(F.relu(self.norm3(self.conv3(x))))) + self.norm5(self.short(x)))
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class Dense(nn.Module):
    """A DenseNet's block: the second convolution's channels are stacked on the first's."""

    def __init__(self, a: int = 8, b: int = 6) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, a, 3, padding=1), nn.Conv2d(a, b, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(a + b), nn.Conv2d(a + b, 4, 1)

    def forward(self, x: Any) -> Any:
        x = F.relu(self.conv1(x))
        return self.head(F.relu(self.norm(torch.cat([x, self.conv2(x)], 1))))


class Vit(nn.Module):
    """Patches, a class token and a pre-norm block with PyTorch's own attention."""

    def __init__(self, a: int = 24) -> None:
        super().__init__()
        self.patch, self.token = nn.Conv2d(3, 16, 4, stride=4), nn.Parameter(torch.zeros(1, 1, 16))
        self.place = nn.Parameter(torch.zeros(1, 5, 16))
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(16), nn.LayerNorm(16), nn.LayerNorm(16)
        self.attend = nn.MultiheadAttention(16, 4, batch_first=True)
        self.up, self.down, self.head = nn.Linear(16, a), nn.Linear(a, 16), nn.Linear(16, 3)

    def forward(self, x: Any) -> Any:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.place
        y = self.norm1(x)
        x = x + self.attend(y, y, y, need_weights=False)[0]
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(self.norm3(x)[:, 0])


class Bert(nn.Module):
    """Tokens and a post-norm block whose attention is written out."""

    def __init__(self, a: int = 24, b: int = 10) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(11, 16), nn.Parameter(torch.zeros(7, 16))
        self.query, self.key, self.value = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.out, self.norm1, self.norm2 = nn.Linear(16, 16), nn.LayerNorm(16), nn.LayerNorm(16)
        self.up, self.down, self.pool, self.head = nn.Linear(16, a), nn.Linear(a, 16), nn.Linear(16, b), nn.Linear(b, 3)

    def forward(self, ids: Any) -> Any:
        x = self.tokens(ids) + self.places
        q, k, v = (part(x).view(-1, 7, 2, 8).transpose(1, 2) for part in (self.query, self.key, self.value))
        mixed = torch.softmax(q @ k.transpose(2, 3) / 8**0.5, -1) @ v
        x = self.norm1(x + self.out(mixed.transpose(1, 2).reshape(-1, 7, 16)))
        x = self.norm2(x + self.down(F.gelu(self.up(x))))
        return self.head(torch.tanh(self.pool(x[:, 0])))


class SwiGlu(nn.Module):
    """As in LLaMA: the gate's and the value's neurons go together."""

    def __init__(self, a: int = 24) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(6, a, bias=False), nn.Linear(6, a, bias=False), nn.Linear(a, 3)

    def forward(self, x: Any) -> Any:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class FusedSwiGlu(nn.Module):
    """One projection makes gate and value, which are split."""

    def __init__(self, a: int = 24) -> None:
        super().__init__()
        self.both, self.down = nn.Linear(6, 2 * a), nn.Linear(a, 3)

    def forward(self, x: Any) -> Any:
        gate, value = self.both(x).split(self.down.in_features, -1)
        return self.down(F.silu(gate) * value)


class Recurrent(nn.Module):
    """What an LSTM reads and keeps stays; the head behind it is pruned."""

    def __init__(self, a: int = 10) -> None:
        super().__init__()
        self.lift, self.lstm = nn.Linear(6, 8), nn.LSTM(8, 8, batch_first=True)
        self.fc1, self.fc2 = nn.Linear(8, a), nn.Linear(a, 3)

    def forward(self, x: Any) -> Any:
        return self.fc2(F.relu(self.fc1(self.lstm(F.relu(self.lift(x)))[0][:, -1])))


def flat(pixels: int) -> Callable[[Array], Array]:
    """Where the pixels of channels lie once they are flattened."""
    return lambda channels: channels[:, None] * pixels + np.arange(pixels)


def linear(*names: str) -> list[Cut]:
    """Outputs of Linear and Conv2d modules."""
    return [Cut(f"{name}.{part}", 0) for name in names for part in ("weight", "bias")]


def norm(*names: str) -> list[Cut]:
    parts = ("weight", "bias", "running_mean", "running_var")
    return [Cut(f"{name}.{part}", 0) for name in names for part in parts]


IMAGES, ROWS = normal(200, 3, 8, 8), normal(200, 6)

CNN = [
    Hidden(8, [*linear("conv1"), *norm("norm1"), Cut("conv2.weight", 1)]),
    Hidden(12, [Cut("conv2.weight", 0), *norm("norm2"), Cut("fc1.weight", 1, flat(4))]),
    Hidden(10, [*linear("fc1"), Cut("fc2.weight", 1)]),
]

CASES = {
    "mlp": Case(Mlp, ROWS, [
        Hidden(24, [*linear("fc1"), Cut("fc2.weight", 1)]),
        Hidden(20, [*linear("fc2"), Cut("fc3.weight", 1)]),
    ]),
    "cnn, flatten": Case(partial(Cnn, flatten=partial(torch.flatten, start_dim=1)), IMAGES, CNN),
    "cnn, view": Case(partial(Cnn, flatten=lambda x: x.view(x.size(0), -1)), IMAGES, CNN),
    "cnn, view of a known size": Case(partial(Cnn, flatten=lambda x: x.view(-1, x[0].numel())), IMAGES, CNN),
    "depthwise": Case(Depthwise, IMAGES, [
        Hidden(8, [*(Cut(f"{name}.weight", 0) for name in ("stem", "depth1")), *norm("norm1", "norm2"),
                   Cut("point1.weight", 1)]),
        Hidden(12, [Cut("point1.weight", 0), *linear("depth2"), *norm("norm3", "norm4"), Cut("head.weight", 1)]),
    ]),
    "residual": Case(Residual, IMAGES, [
        Hidden(8, [Cut("stem.weight", 0), Cut("conv2.weight", 0), *norm("norm", "norm2"),
                   *(Cut(f"{name}.weight", 1) for name in ("conv1", "conv3", "short"))]),
        Hidden(6, [Cut("conv1.weight", 0), *norm("norm1"), Cut("conv2.weight", 1)]),
        Hidden(10, [Cut("conv3.weight", 0), *norm("norm3"), Cut("conv4.weight", 1)]),
        Hidden(12, [Cut("conv4.weight", 0), Cut("short.weight", 0), *norm("norm4", "norm5"), Cut("head.weight", 1)]),
    ]),
    "dense": Case(Dense, IMAGES, [
        Hidden(14, [*(Cut(*cut[:2], lambda both: both[both < 8]) for cut in linear("conv1")),
                    *(Cut(*cut[:2], lambda both: both[both >= 8] - 8) for cut in linear("conv2")),
                    Cut("conv2.weight", 1, lambda both: both[both < 8]), *norm("norm"), Cut("head.weight", 1)]),
    ], widths=lambda keeps: (sum(both < 8 for both in keeps[0]), sum(both >= 8 for both in keeps[0]))),
    "vit": Case(Vit, IMAGES, [Hidden(24, [*linear("up"), Cut("down.weight", 1)])], opset=14),
    "bert": Case(Bert, np.random.default_rng(1).integers(0, 11, (200, 7)), [
        Hidden(24, [*linear("up"), Cut("down.weight", 1)]),
        Hidden(10, [*linear("pool"), Cut("head.weight", 1)]),
    ]),
    "swiglu": Case(SwiGlu, ROWS, [Hidden(24, [Cut("gate.weight", 0), Cut("up.weight", 0), Cut("down.weight", 1)])]),
    "fused swiglu": Case(FusedSwiGlu, ROWS, [
        Hidden(24, [*(Cut(*cut[:2], lambda neurons: np.concatenate([neurons, neurons + 24])) for cut in linear("both")),
                    Cut("down.weight", 1)]),
    ]),
    "recurrent": Case(Recurrent, normal(200, 5, 6), [Hidden(10, [*linear("fc1"), Cut("fc2.weight", 1)])]),
}  # fmt: skip


# Exporters


def by_torchscript(model: Any, rows: Any, **options: Any) -> onnx.ModelProto:
    file = io.BytesIO()
    torch.onnx.export(
        model, (rows,), file, dynamo=False, input_names=["input"], dynamic_axes={"input": {0: "N"}}, **options
    )
    return onnx.load_from_string(file.getvalue())


def by_dynamo(model: Any, rows: Any, opset_version: int) -> onnx.ModelProto:
    shapes = ({0: torch.export.Dim("N")},)
    program = torch.onnx.export(
        model, (rows,), dynamo=True, input_names=["input"], dynamic_shapes=shapes, opset_version=opset_version,
        verbose=False,
    )  # fmt: skip
    return program.model_proto


UNFOLDED = {"training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False}
"""BatchNormalization nodes stay nodes, transposed weights stay behind Transpose nodes."""

EXPORTERS: dict[str, Callable[..., onnx.ModelProto]] = {
    "script 11": partial(by_torchscript, opset_version=11),
    "script 13 unfolded": partial(by_torchscript, opset_version=13, **UNFOLDED),
    "script 17": partial(by_torchscript, opset_version=17),
    "dynamo 18": partial(by_dynamo, opset_version=18),
    "dynamo 23": partial(by_dynamo, opset_version=23),
}


@cache
def built(name: str) -> Any:
    """The model in inference mode: random weights, and running statistics and norms that matter."""
    torch.manual_seed(0)
    model = CASES[name].make().eval()
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if key.startswith(("norm", "place", "token")) and value.ndim:
                value.copy_(torch.rand(value.shape) + 0.5)
    return model


@cache
def exported(name: str, exporter: str) -> onnx.ModelProto:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters' own deprecations, and what tracing fixes
        return EXPORTERS[exporter](built(name), torch.from_numpy(CASES[name].rows[:2]))


def without(name: str, report: dict[str, Any]) -> Any:
    """The model made anew, with as many neurons as `report` keeps and their weights."""
    case = CASES[name]
    keeps = keeps_of(report, case.layers)
    weights = {key: value.numpy() for key, value in built(name).state_dict().items()}
    model = case.make(*case.widths(keeps))
    model.load_state_dict(
        {key: torch.from_numpy(array) for key, array in narrowed(weights, case.layers, keeps).items()}
    )
    return model.eval()


def exporters(name: str) -> list[str]:
    """Which exporters make a graph of their own of this model.

    Dynamo flattens in one way only, and its later opsets differ in Gelu and attention.
    """
    scripts = [exporter for exporter in list(EXPORTERS)[:3] if int(exporter.split()[1]) >= CASES[name].opset]
    return scripts + ["dynamo 18"] * ("view" not in name) + ["dynamo 23"] * (name in ("mlp", "vit"))


PAIRS = [pytest.param(name, exporter, id=f"{name}-{exporter}") for name in CASES for exporter in exporters(name)]


@pytest.mark.parametrize(("name", "exporter"), PAIRS)
def test_pruned_file_answers_as_the_narrower_module(name: str, exporter: str) -> None:
    rows = CASES[name].rows
    result = halved(exported(name, exporter), {"input": rows}, refit="none")
    with torch.no_grad():
        expected = without(name, result.report)(torch.from_numpy(rows[:9])).numpy()
    (found,) = run(result.model, {"input": rows[:9]})
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "exporter"), PAIRS)
def test_refit_helps(name: str, exporter: str) -> None:
    assert refit_helps(exported(name, exporter), {"input": CASES[name].rows})


@pytest.mark.parametrize("exporter", exporters("recurrent"))
def test_lstm_is_refused_as_recurrent(exporter: str) -> None:
    (reason,) = {reason for name, reason in reasons(exported("recurrent", exporter)).items() if "lstm" in name.lower()}
    assert "recurrent" in reason


@pytest.mark.parametrize("exporter", exporters("bert"))
def test_queries_keys_and_values_are_refused(exporter: str) -> None:
    assert sum("attention" in reason for reason in reasons(exported("bert", exporter)).values()) >= 3
