"""What GPUs and storage cost, as an administrator wrote it down.

Amounts are decimal numbers from end to end: a sum of binary fractions would not be the sum that a person adds up.
"""

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

HOURS_OF_A_MONTH = Decimal(730)
"""A year of 365 days has 8,760 hours; clouds bill a month as a twelfth of them."""

Price = Annotated[Decimal, Field(ge=0, max_digits=12, decimal_places=6)]


class _PriceModel(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)


class NodePrice(_PriceModel):
    """What a GPU-hour costs on nodes with a label."""

    label: str = Field(min_length=1, max_length=317)
    value: str = Field(max_length=63)
    price: Price


class GpuHourPrices(_PriceModel):
    """What a GPU-hour costs: by the first label that the node has, or else the default."""

    default: Price
    by_node_label: tuple[NodePrice, ...] = ()


class StoragePrices(_PriceModel):
    """What a GiB costs for a month, by storage class."""

    default: Price = Decimal(0)
    by_storage_class: Mapping[str, Price] = {}


class Pricing(_PriceModel):
    """All prices, in one currency."""

    currency: str = Field(pattern=r"^[A-Z]{3}$")
    """As ISO 4217 names it."""
    gpu_hour: GpuHourPrices
    storage_gib_month: StoragePrices = Field(default=StoragePrices(), alias="storageGiBMonth")

    @property
    def differs_by_node(self) -> bool:
        """Whether it has to be known on which node a GPU is."""
        return bool(self.gpu_hour.by_node_label)

    def of_gpu_hour(self, node_labels: Mapping[str, str]) -> Decimal:
        """Return what a GPU-hour costs on a node with these labels."""
        for entry in self.gpu_hour.by_node_label:
            if node_labels.get(entry.label) == entry.value:
                return entry.price
        return self.gpu_hour.default

    def of_gib_month(self, storage_class_name: str | None) -> Decimal:
        """Return what a GiB costs for a month; None is the cluster's default storage class."""
        prices = self.storage_gib_month
        return prices.by_storage_class.get(storage_class_name or "", prices.default)


def parse_pricing(text: str) -> Pricing:
    """Read prices as the chart writes them, in JSON.

    Raises:
        ValueError: they cannot be read; the message says where and why.
    """
    try:
        return Pricing.model_validate_json(text)
    except ValidationError as error:
        problems = (
            f"{'.'.join(map(str, problem['loc'])) or 'it'}: {problem['msg']}"
            for problem in error.errors(include_url=False, include_input=False)
        )
        raise ValueError(f"must be prices as values.yaml explains them ({'; '.join(problems)})") from error
