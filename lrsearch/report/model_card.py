"""The model card of an exported folder: README.md, as model repositories show it, made of the certificate alone."""

from lrsearch.report.certificate import ONNX, Certificate, shown

CARD = "README.md"
_FIGURES = {
    "metric": "metric", "divergence": "divergence from the dense model", "params": "parameters", "macs": "multiply-accumulates",
    "weight_bytes": "bytes of weights.safetensors", "onnx_bytes": f"bytes of {ONNX}", "latency_ms": "milliseconds",
}


def model_card(certificate: Certificate, onnx: bool) -> str:
    """Base model, data, figures, checks and how to load, as Markdown with the front matter that model hubs read.

    Args:
        onnx: whether the folder has a model for ONNX Runtime.
    """
    config, figures = certificate.origin.config, certificate.figures
    model = config.model
    base = model.timm or model.call if model else None
    hub = [f"base_model: timm/{model.timm}"] if model and model.timm else []
    head = ["---", "library_name: lrsearch", "tags: [compression, low-rank, sparse]", *hub]
    rows = [
        f"| {name} | {shown(figures[key])} | {f'{figures[ratio]:.1%}' if (ratio := f'{key}_ratio') in figures else ''} |"
        for key, name in _FIGURES.items() if key in figures
    ]
    data = config.data and (config.data.score.folder or config.data.score.call)
    passed = f"{len(certificate.checks) - len(certificate.failures)} of {len(certificate.checks)} checks passed"
    left = f", {len(certificate.unchecked)} not checked" if certificate.unchecked else ""
    loading = f"model = lrsearch.load(folder{'' if hub else ', base=dense_model'})"
    return "\n".join([
        *head, "---", "", f"# {_text(config.name)}", "",
        f"{_text(base or 'A network given from Python')}, every weight compressed to low-rank + sparse by lrsearch.", "",
        "| figure | value | of dense |", "|---|---:|---:|", *rows, "",
        f"Scored on {_text(data or 'data given from Python')}; {passed}{left}: `certificate.md`.", "",
        "```python", "import lrsearch", "", 'folder = "."', loading, "```",
        *(["", "```python", "import onnxruntime", "", f'session = onnxruntime.InferenceSession("{ONNX}")', "```"] if onnx else []), "",
    ])


def _text(text: object) -> str:
    """On one line, without markup."""
    return "".join(c if c.isalnum() or c in " .,:_/-+" else "\\" + c if c.isprintable() else " " for c in str(text))
