"""The written report of an export: what was made from what, which gates it passed, what drifts; JSON and Markdown."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from critiq_exporters.core.drift import LayerDrift
from critiq_exporters.core.gates import Gate
from critiq_exporters.core.precisions import NOTES, Precision

REPORT_FILE = "export_report.json"
_TEXT_FILE = "export_report.md"
_PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy", "pillow")


class PrecisionReport(BaseModel):
    """One precision of the model, written or refused."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    precision: Precision
    name: str
    """Of the model that serves it."""
    gates: list[Gate]
    graph_bytes: dict[str, int]
    """Size of each stage's graph."""
    seconds: dict[str, float]
    """onnxruntime, batch 1, each stage, a picture; as measured during the gates, other load on the machine included."""
    drift: dict[str, list[LayerDrift]] = {}
    """By stage: the layers where the error against fp32 grows most."""

    @property
    def passed(self) -> bool:
        return all(gate.passed for gate in self.gates)


class Report(BaseModel):
    """One export."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    family: str
    version: str
    options: dict[str, str | float | int]
    checkpoint_sha256: str
    command: str
    created: str
    pictures: str
    threads: int
    torch_seconds: dict[str, float]
    """torch in eager mode, batch 1, each stage, a picture."""
    precisions: list[PrecisionReport]
    packages: dict[str, str] = {}

    def write(self, folder: Path) -> None:
        """Both forms into ``folder``."""
        (folder / REPORT_FILE).write_text(self.model_dump_json(indent=1) + "\n", "utf-8")
        (folder / _TEXT_FILE).write_text(self.markdown(), "utf-8")

    def markdown(self) -> str:
        lines = [
            f"# Export of {self.family}, version {self.version}",
            "",
            f"Made {self.created} by `{self.command}` from a checkpoint with SHA-256 `{self.checkpoint_sha256}`",
            f"(options: {', '.join(f'{key}={value}' for key, value in self.options.items()) or 'none'}), on "
            f"{self.pictures}.",
            f"Packages: {', '.join(f'{name} {number}' for name, number in self.packages.items())}.",
            "",
        ]
        for entry in self.precisions:
            lines += self._precision(entry)
        return "\n".join(lines)

    def _precision(self, entry: PrecisionReport) -> list[str]:
        verdict = f"written as `{entry.name}`" if entry.passed else "**not written**: a gate failed"
        lines = [f"## {entry.precision}: {verdict}", "", f"{NOTES[entry.precision]}.", ""]
        lines += ["| stage | graph | onnxruntime | torch | ratio |", "|---|---|---|---|---|"]
        for stage, seconds in entry.seconds.items():
            eager = self.torch_seconds[stage]
            lines.append(
                f"| {stage} | {entry.graph_bytes[stage] / 1e6:.1f} MB "
                f"| {1000 * seconds:.1f} ms | {1000 * eager:.1f} ms | {eager / seconds:.2f} |"
            )
        lines += ["", f"Times are of one picture on {self.threads} CPU thread(s), not repeated.", ""]
        lines += ["| gate | figure | limit | |", "|---|---|---|---|"]
        for gate in entry.gates:
            mark = "passed" if gate.passed else "**failed**"
            lines.append(f"| {gate.name} | {gate.figure:.3g} {gate.unit} | {gate.limit:g} | {mark} |")
        for stage, drifts in entry.drift.items():
            if not drifts:
                continue
            lines += ["", f"Layers of {stage} where the error against fp32 grows most:", ""]
            lines += ["| layer | operator | error / rms | growth |", "|---|---|---|---|"]
            lines += [f"| {item.layer} | {item.operator} | {item.error:.3g} | {item.step:.3g} |" for item in drifts]
        return [*lines, ""]


def packages() -> dict[str, str]:
    """Versions of what an export depends on."""
    return {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES}


def read_report(folder: Path) -> Report:
    """The report of the bundle in ``folder``. Raises ``FileNotFoundError`` if it was not made by this exporter."""
    return Report.model_validate_json((folder / REPORT_FILE).read_bytes())
