"""Sizes as people write them: "500MB", "1.5GiB". As broker/base/sizes.cc reads them.

Imports nothing: modelbroker.run reads its options with it before any program runs.
"""

_UNITS = {
    "": 1,
    "B": 1,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "TiB": 1 << 40,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}
_LIMIT = 1 << 63


def bytes_of(size: "int | str") -> int:
    """How many bytes a number, or a text with a unit, says."""
    found = _bytes_of_text(size) if isinstance(size, str) else size
    if found is None or not 0 <= found < _LIMIT:
        from .._errors import InvalidArgumentError

        raise InvalidArgumentError(
            f"{str(size)[:64]!r} is not a size: write bytes, or a number with KiB MiB GiB TiB "
            "(binary) or KB MB GB TB (decimal)"
        )
    return found


def _bytes_of_text(text: str) -> "int | None":
    number = text.rstrip("BKMGTi").rstrip(" ")
    unit = text[len(number) :].lstrip(" ")
    whole, _, fraction = number.partition(".")
    digits = whole + fraction
    scale: int = 10 ** len(fraction)
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 40 or unit not in _UNITS:
        return None
    return int(digits) * _UNITS[unit] // scale
