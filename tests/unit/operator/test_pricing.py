"""Prices: what an administrator may write, and which of them holds."""

from decimal import Decimal

import pytest

from finetune_operator.pricing import parse_pricing

PRICES = parse_pricing(
    '{"currency": "USD", "gpuHour": {"default": 2.95, "byNodeLabel": ['
    '{"label": "instance", "value": "h100-spot", "price": "1.25"},'
    '{"label": "zone", "value": "eu-1", "price": "3.10"}]},'
    '"storageGiBMonth": {"default": "0.08", "byStorageClass": {"network-ssd": "0.071"}}}'
)


def test_a_price_is_read_as_it_is_written_whether_it_is_a_number_or_a_text() -> None:
    assert PRICES.of_gpu_hour({}) == Decimal("2.95")
    assert PRICES.of_gpu_hour({"instance": "h100-spot"}) == Decimal("1.25")


def test_the_first_label_that_a_node_has_counts() -> None:
    assert PRICES.of_gpu_hour({"zone": "eu-1", "instance": "h100-spot"}) == Decimal("1.25")
    assert PRICES.of_gpu_hour({"zone": "eu-1", "instance": "h100"}) == Decimal("3.10")


def test_storage_has_the_price_of_its_class_or_the_default() -> None:
    assert PRICES.of_gib_month("network-ssd") == Decimal("0.071")
    assert PRICES.of_gib_month("shared-fs") == Decimal("0.08")
    assert PRICES.of_gib_month(None) == Decimal("0.08")


def test_storage_without_prices_costs_nothing() -> None:
    assert parse_pricing('{"currency": "EUR", "gpuHour": {"default": "2"}}').of_gib_month("shared-fs") == 0


WRONG = {
    "no JSON": ("2.95", "Input should be an object"),
    "no currency": ('{"gpuHour": {"default": 1}}', "currency: Field required"),
    "a currency by its sign": ('{"currency": "$", "gpuHour": {"default": 1}}', "currency"),
    "no price for a node without a label": ('{"currency": "USD", "gpuHour": {}}', "gpuHour.default: Field required"),
    "a price below nothing": ('{"currency": "USD", "gpuHour": {"default": -1}}', "gpuHour.default"),
    "a misspelt field": ('{"currency": "USD", "gpuHours": {"default": 1}}', "gpuHours"),
}


@pytest.mark.parametrize(("text", "words"), WRONG.values(), ids=WRONG.keys())
def test_prices_that_cannot_be_read_are_refused_with_where_and_why(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=r"^must be prices") as refusal:
        parse_pricing(text)
    assert words in str(refusal.value)
