"""A segmentation network, trained here on canvases of pasted digits, to 30 % of its bytes: mean IoU.

    python studies/real_models/segmentation.py [--quick]

The digits are scikit-learn's, 8 x 8 pixels: two to four on a canvas of 32 x 32. A pixel's label is the digit that inks it, or 10 for
none. Calibration, score and training have other digits. lrsearch sees by itself that classes are on axis 1 (task segmentation).
"""

import torch
import torch.nn.functional as F
from common import Subject, arguments, compared, tell
from sklearn.datasets import load_digits
from torch import Tensor, nn

SIZE, DIGIT, EMPTY = 32, 8, 10  # pixels; pixels; the class of what no digit inks
INK = 4  # of 16: from here on a pixel belongs to the digit
SPLITS = {"train": slice(0, 1000), "calibration": slice(1000, 1300), "score": slice(1300, 1797)}


class SegmentationNet(nn.Module):
    """``(n, 1, 32, 32)`` → ``(n, 11, 32, 32)``: an encoder, a decoder with a transposed convolution, and what it skips."""

    def __init__(self) -> None:
        super().__init__()

        def block(into: int, out: int, stride: int = 1) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(into, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU())

        self.fine, self.coarse = nn.Sequential(block(1, 16), block(16, 24)), nn.Sequential(block(24, 48, 2), block(48, 48), block(48, 48))
        self.up, self.merged = nn.ConvTranspose2d(48, 24, 2, 2), nn.Sequential(block(48, 32), nn.Conv2d(32, EMPTY + 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(x)
        logits: Tensor = self.merged(torch.cat([fine, self.up(self.coarse(fine)).relu()], 1))
        return logits


def canvases(split: str, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images ``(count, 1, 32, 32)`` in about [-1, 1], and the class of each pixel."""
    digits, generator = load_digits(), torch.Generator().manual_seed(seed)
    order = torch.randperm(len(digits.images), generator=torch.Generator().manual_seed(0))[SPLITS[split]]
    x, y = torch.zeros(count, 1, SIZE, SIZE), torch.full((count, SIZE, SIZE), EMPTY)
    for image, label in zip(x, y, strict=True):
        for index in order[torch.randint(len(order), (int(torch.randint(2, 5, (1,), generator=generator)),), generator=generator)]:
            top, left = torch.randint(SIZE - DIGIT + 1, (2,), generator=generator).tolist()
            pixels, place = torch.from_numpy(digits.images[index]).float(), (slice(top, top + DIGIT), slice(left, left + DIGIT))
            image[0][place] = torch.where(pixels >= INK, pixels, image[0][place])
            label[place][pixels >= INK] = int(digits.target[index])
    return x / 8 - 1 + 0.1 * torch.randn(x.shape, generator=generator), y


def trained(epochs: int, count: int) -> nn.Module:
    torch.manual_seed(0)
    model, (x, y) = SegmentationNet(), canvases("train", count, 2)
    optimizer = torch.optim.AdamW(model.parameters(), 4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=epochs * (count // 32))
    for _ in range(epochs):
        for index in torch.randperm(count)[: count // 32 * 32].view(-1, 32):
            optimizer.zero_grad()
            F.cross_entropy(model(x[index]), y[index]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def main() -> None:
    args = arguments(__doc__)
    fitted, scored = (32, 32) if args.quick else (200, 300)
    model = trained(1, 128) if args.quick else trained(8, 1024)
    calibration, score = canvases("calibration", fitted, 0), canvases("score", scored, 1)
    subject = Subject("segmentation", model, calibration[0], score, (0.3,), "mean IoU")
    rows = compared(subject, 8, args.quick)
    tell("segmentation.py", rows, [f"calibration {fitted} canvases, score n = {scored} others; float32"], args.quick)


if __name__ == "__main__":
    main()
