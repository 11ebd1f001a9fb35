from dataclasses import replace

import pytest
import yaml
from birds_version import version_facts

from rdm.report.cards import NOT_UNLEARNED, DatasetCard, ModelCard, dataset_card, model_card
from rdm.report.data import Command, Condition, Difference, Estimate, HeldOutLoss, Metric

DATASET = DatasetCard(
    name="birds",
    license_id="cc-by-2.0",
    license_url="https://creativecommons.org/licenses/by/2.0/",
    source="Open Images",
    facts=version_facts(source="Open Images", photographs=919, index="IVF64,Flat"),
    removal_contact="remove@example.org",
    credits="One list.",
    ledger={"too small": 4, "broken": 1},
    known_gaps=("Nearly all are birds.",),
)
MODEL = ModelCard(
    name="rdm-tiny",
    license_id="apache-2.0",
    recipe="rdm-tiny",
    training={"Parameters": "11,700,000", "Database": "birds | owls"},
    removal_contact="remove@example.org",
    limits=("Pictures are small.",),
    usage=(Command("rdm sample -k 4", "a row"),),
    held_out=HeldOutLoss(
        (Condition("true", "", Estimate(0.3, 0.28, 0.32)),),
        (Difference("shuffled minus true", Estimate(0.0177, 0.0141, 0.0213)),),
        92,
        8,
        0.1,
    ),
    metrics=(Metric("FID", 142.3, "Inception v3", 512, "92 photographs", "bicubic"),),
)


def header(card: str) -> dict[str, object]:
    return yaml.safe_load(card.split("---\n")[1])


def test_dataset_header_is_yaml() -> None:
    assert header(dataset_card(DATASET)) == {
        "license": "cc-by-2.0",
        "pretty_name": "birds",
        "tags": ["retrieval-database", "image-embeddings"],
        "size_categories": ["n<1K"],
    }


def test_model_header_is_yaml() -> None:
    assert header(model_card(MODEL))["license"] == "apache-2.0"


def test_hostile_names_break_neither_header_nor_text() -> None:
    name = 'a: "b"\n--- # <script>alert(1)</script> | [x](javascript:y) `z`'
    card = dataset_card(replace(DATASET, name=name))
    assert header(card)["pretty_name"] == name
    body = card.split("\n---\n")[-1]
    assert (
        '\n# a: "b" --- \\# \\<script\\>alert(1)\\</script\\> \\| \\[x\\](javascript:y) \\`z\\`\n'
        in body
    )


@pytest.mark.parametrize(
    "line",
    [
        "| Photographs | 919 |",
        "| Photographs removed on request | 2 |",
        "| Deleted patches | 7 |",
        "| Fingerprint of the source | `41f9` |",
        "| Recall@20, 95% interval | 0.9930 (0.9900 to 0.9960) |",
        "| broken | 1 |",
        "- Nearly all are birds.",
    ],
)
def test_dataset_card_states_counts_and_gaps(line: str) -> None:
    assert line in dataset_card(DATASET).splitlines()


@pytest.mark.parametrize(
    "line",
    [
        "| Parameters | 11,700,000 |",
        "| Recipe | rdm-tiny |",
        "| Database | birds \\| owls |",
        "| true | 0.3000 | 0.2800 to 0.3200 |",
        "| shuffled minus true | +0.0177 | +0.0141 to +0.0213 |",
        "| FID | 142.3 | Inception v3 | 512 | 92 photographs | bicubic |  |",
        "- Pictures are small.",
        "rdm sample -k 4",
    ],
)
def test_model_card_states_training_measurements_and_limits(line: str) -> None:
    assert line in model_card(MODEL).splitlines()


def test_both_cards_name_the_removal_contact_and_that_weights_are_not_unlearned() -> None:
    for card in (dataset_card(DATASET), model_card(MODEL)):
        assert f"write to remove@example.org. {NOT_UNLEARNED}" in card


def test_empty_parts_are_said_to_be_empty() -> None:
    assert "No picture was left out." in dataset_card(replace(DATASET, ledger={}))
    assert "None are recorded." in dataset_card(replace(DATASET, known_gaps=()))
    assert "Nothing was measured." in model_card(replace(MODEL, held_out=None, metrics=()))


def test_several_licenses_are_counted_and_a_single_one_is_not_listed_again() -> None:
    several = dataset_card(replace(DATASET, licenses={"https://example.org/a": 2, "not stated": 5}))
    assert "| not stated | 5 |\n| https://example.org/a | 2 |" in several
    assert "## Licenses" not in dataset_card(
        replace(DATASET, licenses={"https://example.org/a": 2})
    )


def test_card_without_a_contact_says_so() -> None:
    card = dataset_card(replace(DATASET, removal_contact=""))
    assert "ask whoever serves this database: no contact is given." in card


def test_usage_with_backticks_stays_inside_its_fence() -> None:
    card = model_card(replace(MODEL, usage=(Command("echo ```"),)))
    assert "````sh\necho ```\n````" in card


@pytest.mark.parametrize(
    ("count", "category"),
    [(999, "n<1K"), (1000, "1K<n<10K"), (20_000_000, "10M<n<100M"), (10**9, "n>100M")],
)
def test_size_category(count: int, category: str) -> None:
    facts = DATASET.facts.model_copy(update={"photographs": count})
    assert header(dataset_card(replace(DATASET, facts=facts)))["size_categories"] == [category]
