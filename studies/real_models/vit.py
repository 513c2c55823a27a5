"""torchvision's vision transformer: its attention (nn.MultiheadAttention) is compressed like all else.

    python studies/real_models/vit.py [--quick]

A small one of torchvision's own class, with random weights, as torchvision's packages bring none: the rows show what is compressed and
to what size, not what a trained model would lose. The images are scikit-learn's digits, enlarged.
"""

import torch
import torch.nn.functional as F
from common import Subject, arguments, compared, tell
from sklearn.datasets import load_digits
from torchvision.models import VisionTransformer

import lrsearch


def main() -> None:
    args = arguments(__doc__)
    torch.manual_seed(0)
    model = VisionTransformer(image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=64, mlp_dim=128, num_classes=10)
    torch.nn.init.normal_(model.heads.head.weight, std=0.1)  # torchvision begins with zeros, whose outputs are constant
    images = F.interpolate(torch.from_numpy(load_digits().images).float()[:, None] / 8 - 1, size=32).expand(-1, 3, -1, -1)
    fitted, scored = (64, 64) if args.quick else (300, 300)
    calibration, score = images[:fitted].clone(), images[fitted : fitted + scored].clone()
    subject = Subject("torchvision ViT", model.eval(), calibration, score, (0.4,), "", cost="params")
    rows = compared(subject, 6, args.quick)
    frame = lrsearch.layers(model, calibration).frame
    attention = frame[frame.layer.str.contains("attention")][["layer", "share", "choices", "reason"]]
    about = f"calibration {fitted} images, score n = {scored} others; random weights"
    notes = [about, f"{attention.share.sum():.0%} of the values are in attention:", attention.round(4).to_string(index=False)]
    tell("vit.py", rows, notes, args.quick)


if __name__ == "__main__":
    main()
