"""Train one of the two digit networks and write its ONNX file, its weights and its data.

    python models/train_digits.py --net resnet

Same seed, same number of threads, same machine: same weights. It takes a minute or two on two cores.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from models.nets import NETS  # noqa: E402  (run as a script, the repository root is not on the path)

TEST, CALIB = 360, 256  # samples; the calibration samples are the first of the training samples
SPLIT_SEED = 1797


def load() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The 1797 digits, each pixel doubled to 16x16 and scaled to [0, 1]: train x and y, test x and y."""
    digits = load_digits()
    x = (digits.images / 16).astype(np.float32).repeat(2, axis=1).repeat(2, axis=2)[:, None]
    y = digits.target.astype(np.int64)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(x))
    test, train = order[:TEST], order[TEST:]
    return x[train], y[train], x[test], y[test]


def shifted(x: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """The batch, moved as a whole by up to two pixels each way."""
    dy, dx = torch.randint(0, 5, (2,), generator=rng).tolist()
    return F.pad(x, (2, 2, 2, 2))[:, :, dy : dy + x.shape[2], dx : dx + x.shape[3]]


def train(net: nn.Module, x: torch.Tensor, y: torch.Tensor, epochs: int, batch: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    steps = len(x) // batch
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.0, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, epochs=epochs, steps_per_epoch=steps)
    net.train()
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=rng)
        total = 0.0
        for i in range(steps):
            pick = order[i * batch : (i + 1) * batch]
            loss = F.cross_entropy(net(shifted(x[pick], rng)), y[pick], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        if epoch % 10 == 9 or epoch == epochs - 1:
            print(f"epoch {epoch + 1}: training loss {total / steps:.4f}", flush=True)
    net.eval()


def export(net: nn.Module, path: Path) -> None:
    """Write the ONNX file with its batch normalisations, which the exporter's evaluation mode would fold."""
    torch.onnx.export(
        net,
        (torch.zeros(1, 1, 16, 16),),
        path,
        dynamo=False,
        opset_version=17,
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
        input_names=["input"],
        output_names=["logits"],
        dynamic_axes={"input": {0: "N"}, "logits": {0: "N"}},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--net", choices=sorted(NETS), required=True)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--out", type=Path, help="folder to write (default: the network's own)")
    args = parser.parse_args()
    name = f"digits_{args.net}"
    out = args.out or ROOT / "models" / name
    out.mkdir(parents=True, exist_ok=True)

    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    start = time.perf_counter()
    x_train, y_train, x_test, y_test = load()
    net = NETS[args.net]()
    train(net, torch.from_numpy(x_train), torch.from_numpy(y_train), args.epochs, args.batch, args.seed)
    seconds = time.perf_counter() - start

    path = out / f"{name}.onnx"
    export(net, path)
    np.savez_compressed(out / f"{name}_state.npz", **{k: v.numpy() for k, v in net.state_dict().items()})
    np.savez_compressed(out / "calib.npz", input=x_train[:CALIB])
    np.savez_compressed(out / "eval.npz", input=x_test, labels=y_test)

    with torch.no_grad():
        logits = net(torch.from_numpy(x_test)).numpy()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    difference = float(np.abs(session.run(None, {"input": x_test})[0] - logits).max())
    if difference > 1e-4:
        raise SystemExit(f"{path}: the ONNX file and the torch module differ by {difference}")
    right = int((logits.argmax(1) == y_test).sum())
    print(f"{name}: {sum(p.numel() for p in net.parameters())} parameters, trained in {seconds:.0f} s")
    print(f"test accuracy {right} of {len(y_test)} = {100 * right / len(y_test):.2f} %")
    print(f"largest difference between ONNX and torch: {difference:.1e}")


if __name__ == "__main__":
    main()
