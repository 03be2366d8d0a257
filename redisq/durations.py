"""Says spans of time as people do."""

import math

_LONG = 1000 * 365 * 86400.0  # seconds; more is no age, but a foreign number


def age(seconds: float) -> str:
    """Return a span of time in its two largest units: 45s, 3m 20s, 2h 5m, 4d 3h."""
    if not math.isfinite(seconds):
        return str(seconds)
    if seconds > _LONG:
        return "over 1000y"
    left = max(0, round(seconds))
    parts = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        parts.append((count, unit))
    first = next((i for i, (count, _) in enumerate(parts) if count), len(parts) - 1)
    return " ".join(f"{count}{unit}" for count, unit in parts[first : first + 2] if count) or "0s"
