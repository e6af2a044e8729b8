"""The tables of families in docs/conversion.md are those of the code and of the published configs that tests read."""

from megagpt.checkpoint.convert.families.registry import FAMILIES, REFUSED
from tests.checkpoint.convert.published import PUBLISHED
from tests.test_docs_figures import table


def families() -> list[list[str]]:
    return [[one.models, f"`{one.architecture}`", ", ".join(PUBLISHED[one.model_type]), one.limits] for one in FAMILIES]


def refused() -> list[list[str]]:
    """One row for every reason and nearest model."""
    rows: dict[tuple[str, str], list[str]] = {}
    for name, reason in REFUSED.items():
        rows.setdefault(reason, []).append(f"`{name}`")
    return [[", ".join(names), what, nearest] for (what, nearest), names in rows.items()]


def text(rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |".replace("|  |", "| |") for row in rows)


def test_families_are_those_of_the_code():
    found = table("../conversion", "models", "transformers' class")
    assert found == families(), f"the rows should be:\n{text(families())}"


def test_refused_models_are_those_of_the_code():
    found = table("../conversion", "`model_type`", "why")
    assert found == refused(), f"the rows should be:\n{text(refused())}"
