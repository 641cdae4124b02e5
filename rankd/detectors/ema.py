"""The classic detector: an exponential moving average against the baseline of the first readings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rankd.detectors.precision import Precision
from rankd.detectors.shares import Share, explained_fall, packed, unpacked, with_reading
from rankd.records import Severity, State, Verdict


class RankTrendDetector:
    """Warns when the EMA of a value is more than `threshold_pct` (a share: 0.2 is 20 %) below its baseline.

    The EMA starts at the first value, and `alpha` is the weight of the newest sample. The first `window` updates are
    silent; after the last of them the EMA becomes the baseline. Of 29 healthy training runs this rule alarmed in 29 on
    stable rank, which falls in healthy training: docs/detection.md says what to use instead.

    >>> detector = RankTrendDetector(alpha=0.5, threshold_pct=0.2, window=2)
    >>> [detector.update(value) for value in (10.0, 10.0, 8.0)]
    [None, None, None]
    >>> detector.update(4.0)
    'WARN EMA 6.5 is 35.0 % below its baseline 10'
    """

    def __init__(self, alpha: float = 0.1, threshold_pct: float = 0.2, window: int = 100) -> None:
        if not 0 < alpha <= 1:
            raise ValueError(f"alpha is {alpha}; expected a weight above 0 and up to 1")
        if not 0 <= threshold_pct <= 1:
            raise ValueError(f"threshold_pct is {threshold_pct}; expected a share from 0 to 1 (0.2 is 20 %)")
        if not isinstance(window, int) or window < 1:
            raise ValueError(f"window is {window}; expected a whole number of updates, 1 or more")
        self.alpha = alpha
        self.threshold_pct = threshold_pct
        self.window = window
        self.reset()

    def reset(self) -> None:
        """Forgets all readings and the baseline."""
        self.ema: float | None = None
        self.initial_ema: float | None = None
        self.step_count = 0

    def update(self, value: float) -> str | None:
        """A text starting `WARN` whenever the EMA is too low, else None. A non-finite value is ignored:
        averaged in, one NaN would silence the detector for ever."""
        if not math.isfinite(value):
            return None
        self.step_count += 1
        self.ema = value if self.ema is None else self.alpha * value + (1 - self.alpha) * self.ema
        if self.initial_ema is None:
            if self.step_count >= self.window:
                self.initial_ema = self.ema
            return None
        drop = self.drop()
        if drop <= self.threshold_pct * abs(self.initial_ema):
            return None
        percent = f" is {100 * drop / abs(self.initial_ema):.1f} % below" if self.initial_ema else " is below"
        return f"WARN EMA {self.ema:.4g}{percent} its baseline {self.initial_ema:.4g}"

    def drop(self) -> float:
        """How far the EMA is below the baseline, in the value's own unit; 0 while there is no baseline."""
        return 0.0 if self.ema is None or self.initial_ema is None else self.initial_ema - self.ema


class EmaDropDetector:
    """RankTrendDetector behind the contract: one verdict at each change of state.

    Firing when it warns; resolved when the EMA is back within half of the threshold below the baseline. The readings
    behind an EMA cannot be taken out again, so going back keeps it as it is: starting anew would mean a second
    warm-up after each restart, which was measured to hide a collapse for 210 steps. Only a run that goes back to
    before its baseline was complete starts anew.

    Where readings of several signatures are in the average or in its baseline, only that part of the drop counts which
    is more than their errors explain.
    """

    rule = "ema_drop"
    metric = "stable_rank"

    def __init__(
        self, severity: Severity = "info", alpha: float = 0.1, threshold_pct: float = 0.2, window: int = 100
    ) -> None:
        self._severity = severity
        self._trend = RankTrendDetector(alpha, threshold_pct, window)
        self._baseline_step: int | None = None
        self._firing = False
        self._shares: dict[str, Share] = {}
        self._baseline_shares: dict[str, Share] = {}

    def update(self, value: float | None, step: int, precision: Precision | None = None) -> Verdict | None:
        if value is None or not math.isfinite(value):
            return None
        message = self._trend.update(value)
        if precision is not None or self._shares:
            weight = self._trend.alpha if self._trend.step_count > 1 else 1.0
            self._shares = with_reading(self._shares, weight, value, precision)
        baseline = self._trend.initial_ema
        if baseline is None:
            return None
        if self._baseline_step is None:
            self._baseline_step, self._baseline_shares = step, self._shares
        threshold = self._trend.threshold_pct * abs(baseline)
        if not self._firing:
            if message is None or self._drop() <= threshold:
                return None
            self._firing = True
            return self._verdict("firing", f"{self.metric} {message.removeprefix('WARN ')}")
        if self._drop() > threshold / 2:
            return None
        self._firing = False
        return self._verdict("resolved", f"{self.metric} EMA {self._trend.ema:.4g} is back near {baseline:.4g}")

    def _drop(self) -> float:
        """As far as errors do not explain it."""
        drop = self._trend.drop()
        return drop - explained_fall(self._baseline_shares, self._shares) if self._shares else drop

    def rewind(self, step: int) -> Verdict | None:
        if self._baseline_step is not None and self._baseline_step < step:
            return None
        verdict = None
        if self._firing:
            verdict = self._verdict("rebased", f"the run went back to step {step}, before the EMA's baseline was taken")
        self._trend.reset()
        self._baseline_step = None
        self._firing = False
        self._shares, self._baseline_shares = {}, {}
        return verdict

    def _verdict(self, state: State, detail: str) -> Verdict:
        severity = "info" if state == "rebased" else self._severity
        return Verdict(self.rule, state, severity, self.metric, self._trend.ema, self._trend.initial_ema, detail)

    @property
    def settings(self) -> tuple[Any, ...]:
        return self._trend.alpha, self._trend.threshold_pct, self._trend.window

    def state(self) -> dict[str, Any]:
        return {
            "ema": self._trend.ema,
            "initial_ema": self._trend.initial_ema,
            "step_count": self._trend.step_count,
            "baseline_step": self._baseline_step,
            "firing": self._firing,
            **({"shares": packed(self._shares)} if self._shares else {}),
            **({"baseline_shares": packed(self._baseline_shares)} if self._baseline_shares else {}),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._trend.ema = state["ema"]
        self._trend.initial_ema = state["initial_ema"]
        self._trend.step_count = state["step_count"]
        self._baseline_step = state["baseline_step"]
        self._firing = state["firing"]
        self._shares = unpacked(state.get("shares", {}))
        self._baseline_shares = unpacked(state.get("baseline_shares", {}))

    def adopt(self, state: Mapping[str, Any]) -> None:
        """Nothing: an average of another weight or window is another number."""
