"""The heads of a face detector (MTCNN's R-Net and O-Net), which return several outputs: boxes, landmarks, face or not.

    python studies/real_models/detectors.py [--quick]

Needs ``pip install --no-deps facenet-pytorch``, which brings the weights, and ``requests`` and ``tqdm``. The patches are generated:
smooth colour fields with a drawn face (an oval, eyes, a mouth) on half of them. lrsearch sees the outputs by itself (task several:
squared error of boxes and landmarks in units of their variance, divergence of the probabilities); there is no label, so no metric.
"""

import torch
import torch.nn.functional as F
from common import Subject, arguments, compared, tell
from facenet_pytorch.models.mtcnn import ONet, RNet
from torch import Tensor

FEATURES = (  # eyes, nose, mouth: middle and half axes in units of the face's, and brightness
    (-0.4, -0.3, 0.2, 0.1, 0.1), (0.4, -0.3, 0.2, 0.1, 0.1), (0.0, 0.1, 0.1, 0.25, 0.6), (0.0, 0.5, 0.4, 0.1, 0.3),
)  # fmt: skip


def patches(count: int, size: int, seed: int) -> Tensor:
    """``(count, 3, size, size)`` in [-1, 1], as the detector takes them."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    image = F.interpolate(random(count, 3, 5, 5), size=size, mode="bicubic", align_corners=True)
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, size)] * 2, indexing="ij")
    centre, wide = 0.3 * random(count, 2, 1, 1) - 0.15, 0.5 + 0.2 * random(count, 1, 1)
    u, v = (x - centre[:, 0]) / wide, (y - centre[:, 1]) / (1.3 * wide)

    def oval(at_x: float, at_y: float, across: float, high: float) -> Tensor:
        """Mask of an oval of the face's own coordinates, soft at the edge, ``(count, 1, size, size)``."""
        return torch.sigmoid(12 * (1 - ((u - at_x) / across) ** 2 - ((v - at_y) / high) ** 2))[:, None]

    skin = torch.tensor([0.85, 0.65, 0.5])[:, None, None] * (0.6 + 0.4 * random(count, 1, 1, 1))
    drawn = image + oval(0, 0, 1, 1) * (skin - image)
    for at_x, at_y, across, high, shade in FEATURES:
        drawn = drawn + oval(at_x, at_y, across, high) * (shade * skin - drawn)
    face = (torch.arange(count) % 2 == 0)[:, None, None, None]
    return (torch.where(face, drawn, image) + 0.03 * torch.randn(image.shape, generator=generator)).clamp(0, 1) * 2 - 1


def main() -> None:
    args = arguments(__doc__)
    fitted, scored = (64, 64) if args.quick else (300, 300)
    rows = []
    for name, model, size in (("R-Net", RNet(), 24), ("O-Net", ONet(), 48))[: 1 if args.quick else 2]:
        subject = Subject(name, model.eval(), patches(fitted, size, 0), patches(scored, size, 1), (0.3,), "")
        rows += compared(subject, 8, args.quick)
    tell("detectors.py", rows, [f"calibration {fitted} patches, score n = {scored} others; float32; no labels"], args.quick)


if __name__ == "__main__":
    main()
