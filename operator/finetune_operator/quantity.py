"""Amounts as Kubernetes writes them: `500m`, `200Gi`, `2Ti`.

https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/, without a sign and without exponents.
"""

import re
from decimal import Decimal

QUANTITY_PATTERN = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"

_DECIMAL = {suffix: Decimal(1000) ** power for power, suffix in enumerate(("", "k", "M", "G", "T", "P", "E"))}
_BINARY = {suffix: Decimal(1024) ** power for power, suffix in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), start=1)}
_FACTORS = _DECIMAL | _BINARY | {"m": Decimal("0.001")}


def quantity_value(text: str) -> Decimal:
    """Return the amount that a quantity stands for.

    Raises:
        ValueError: the text is no quantity.
    """
    if not re.fullmatch(QUANTITY_PATTERN, text):
        raise ValueError(f"{text!r} is no Kubernetes quantity such as 500m or 4Gi")
    number = text.rstrip("mkKMGTPEi")
    return Decimal(number) * _FACTORS[text.removeprefix(number)]
