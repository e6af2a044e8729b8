"""The tool that predicts conversions of all families: its tables are the page's, and its predictions hold."""

import json

import pytest
from conversion_families import COMPARED, MARKERS, MEASURED, PAGE, WAYS, config_of, markdown, nearest, predict

from megagpt.checkpoint.convert.families.registry import BY_TYPE
from megagpt.errors import CheckpointError


def test_the_page_has_the_tables_of_the_tool():
    page = PAGE.read_text(encoding="utf-8")
    shown = page.partition(MARKERS[0])[2].partition(MARKERS[1])[0].strip()
    assert shown == markdown(), "python tools/conversion_families.py --write-docs"


def test_every_family_has_its_nearest_model():
    found = {one.to_megagpt.family: one for one in nearest()}
    assert found.keys() == {family.architecture for family in BY_TYPE.values()}
    assert found["LlamaForCausalLM"].name == "Llama-2-7B"
    assert found["GPTNeoForCausalLM"].name == "GPT-Neo-2.7B"
    llama = found["LlamaForCausalLM"].to_megagpt
    assert llama.bytes == 2 * 6_738_415_616  # as Meta's model card counts them, in 16 bits
    assert sum(llama.written.values()) == pytest.approx(llama.bytes, rel=1e-4)  # and headers


def test_recorded_conversions_are_as_predicted():
    models = json.loads(MEASURED.read_text(encoding="utf-8"))["models"]
    assert tuple(models) == COMPARED
    for name, found in models.items():
        plan = predict(name, config_of(name)).to_megagpt
        for way in WAYS:
            one = found[way]
            assert one["predicted_peak_mib"] == plan.memory / 2**20
            assert one["peak_mib"] < 1.1 * plan.memory / 2**20, (name, way)
            assert 0.8 < one["cpu_seconds"] / plan.cpu_seconds < 1.2, (name, way)
        assert found["back"]["peak_mib"] > 0.95 * plan.memory / 2**20, name


def test_what_is_refused_is_named():
    with pytest.raises(CheckpointError, match=r"Mixtral: .*mixture of experts"):
        predict("Mixtral", config_of("Mistral-7B-v0.1") | {"model_type": "mixtral"})
