"""What a conversion has replaced, what it has not, and why."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Site:
    """A place in the code of a model that calls an activation."""

    name: str
    """The name of the new activation, or of the module that calls the old one."""
    function: str
    """The activation that was there."""
    channels: int = 0
    channel_dim: int = 1
    """1, or -1 for ``[B, *, C]``."""
    reason: str = ""
    """Why it was not replaced; empty if it was."""
    warning: str = ""
    """Set if the new activation does not start as the old one."""
    error: float | None = None
    """RMS difference from the old activation on the example, relative to the RMS of its output."""


@dataclass
class ConversionReport:
    """The sites of a model, and the effect of the conversion on its output."""

    sites: list[Site] = field(default_factory=list)
    output_error: float | None = None
    """Norm of the change of the output in evaluation mode, relative to the norm of the output."""

    @property
    def replaced(self) -> list[Site]:
        return [site for site in self.sites if not site.reason]

    @property
    def kept(self) -> list[Site]:
        return [site for site in self.sites if site.reason]

    def __str__(self) -> str:
        lines = [f"{len(self.replaced)} activations replaced, {len(self.kept)} kept"]
        if self.output_error is not None:
            lines.append(f"relative error of the output: {self.output_error:.3g}")
        for site in self.sites:
            error = "" if site.error is None else f", relative error {site.error:.3g}"
            outcome = f"kept: {site.reason}" if site.reason else f"replaced{error}"
            lines.append(f"{site.name} ({site.function}): {outcome}" + (site.warning and f"; {site.warning}"))
        return "\n".join(lines)
