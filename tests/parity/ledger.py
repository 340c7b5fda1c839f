"""What was compared with what, how far they lie apart, and how far they may."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from parity.golden import NotRepresentable

FLOAT32_GRADIENTS = 1e-2


@dataclass(frozen=True)
class Entry:
    case: str
    precision: str
    quantity: str
    deviation: float  # relative; for exact quantities the number of differing values
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.deviation <= self.tolerance  # NaN is not


class Ledger:
    """Collects comparisons of one case at one precision, so that one failure does not hide the others."""

    def __init__(self, case: str, dtype: torch.dtype) -> None:
        self.case, self.dtype, self.precision = case, dtype, str(dtype).removeprefix("torch.")
        self.entries: list[Entry] = []

    def tolerance(self, in_float64: float) -> float:
        """What the golden values' README allows a float64 run, and 1e-4 for any other."""
        return in_float64 if self.dtype == torch.float64 else 1e-4

    def gradient(self, quantity: str, ours: Tensor, reference: Tensor, tolerance: float) -> None:
        """Of one input; see `gradients` about float32."""
        self.close(quantity, ours, reference, tolerance if self.dtype == torch.float64 else FLOAT32_GRADIENTS)

    def close(self, quantity: str, ours: Tensor, reference: Tensor, tolerance: float, scale: float = 0.0) -> None:
        """Largest difference, relative to the reference's largest value (or `scale`, if that is larger)."""
        if ours.shape != reference.shape:
            raise NotRepresentable(f"{self.case}: {quantity} is {tuple(ours.shape)}, not {tuple(reference.shape)}")
        if reference.numel() == 0:
            return
        reference = reference.detach().double()
        difference = (ours.detach().double() - reference).abs().max()
        size = max(float(reference.abs().max()), scale)
        self._note(quantity, float(difference) / size if size else float(difference), tolerance)

    def same(self, quantity: str, ours: Tensor, reference: Tensor) -> None:
        """Integers that may not differ at all."""
        different = int((ours != reference).sum()) if ours.shape == reference.shape else max(1, reference.numel())
        self._note(quantity, float(different), 0.0)

    def true(self, quantity: str, holds: bool) -> None:
        self._note(quantity, 0.0 if holds else 1.0, 0.0)

    def _note(self, quantity: str, deviation: float, tolerance: float) -> None:
        self.entries.append(Entry(self.case, self.precision, quantity, deviation, tolerance))

    def gradients(
        self,
        quantity: str,
        ours: Mapping[str, Tensor],
        tensors: Mapping[str, Tensor],
        summary: Mapping[str, list[float] | None],
        tolerance: float,
    ) -> None:
        """Gradients under the reference's names, whole and as [l2 norm, sum, largest absolute].

        ours: only parameters that got one. In float64 every tensor is judged by itself; those that are zero but for
        rounding are judged against a millionth of the largest, for no relative statement can be made about them.
        In float32 all recorded tensors are judged together: the gradient jumps where a sampling point crosses a cell or
        an activation its kink, and a few points do in any float32 run.
        """
        largest = max((s[2] for s in summary.values() if s), default=0.0)
        expected = {name for name, reference in summary.items() if reference is not None}
        missing = sorted(expected - set(ours))
        if missing:
            raise NotRepresentable(f"{self.case}: the reference has gradients for {missing[:10]}, ours has none")
        extra = [name for name, value in ours.items() if name not in expected and value.any()]
        self.true(f"{quantity}: none where the reference has none", not extra)
        if self.dtype != torch.float64:
            squared = sum(float((ours[n].double() - t).square().sum()) for n, t in tensors.items())
            size = sum(float(t.square().sum()) for t in tensors.values())
            self._note(f"{quantity}, together", (squared / size) ** 0.5, FLOAT32_GRADIENTS)
            return
        floor = largest * 1e-6
        for name, reference in tensors.items():
            self.close(quantity, ours[name], reference, tolerance, floor)
        for name in expected:
            value, (norm, total, peak) = ours[name].double(), summary[name]
            found = torch.stack((value.norm(), value.sum(), value.abs().max()))
            sizes = (norm, max(abs(total), norm), peak)
            for mine, theirs, size in zip(found, (norm, total, peak), sizes):
                recorded = torch.tensor(theirs, dtype=torch.float64)
                self.close(f"{quantity} (norm, sum, largest)", mine, recorded, tolerance, max(size, floor))

    def worst(self) -> list[Entry]:
        """The largest deviation of each quantity, in the order of comparison."""
        result: dict[tuple[str, float], Entry] = {}
        for entry in self.entries:
            before = result.setdefault((entry.quantity, entry.tolerance), entry)
            if not entry.deviation <= before.deviation:
                result[entry.quantity, entry.tolerance] = entry
        return list(result.values())

    def verdict(self) -> None:
        """Fail with the worst deviation of every quantity that lies too far off."""
        failed = [e for e in self.worst() if not e.passed]
        lines = [f"{e.quantity}: {e.deviation:.3g} > {e.tolerance:.3g}" for e in failed]
        assert not failed, f"{self.case} in {self.precision}, worst of each quantity:\n" + "\n".join(lines)
        assert self.entries, f"{self.case}: nothing was compared"
