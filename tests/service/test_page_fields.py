"""The fields of the page, without a browser: they become those of a request, and come back from a video."""

import io

import pytest
from PIL import Image

from models.mochi.setup import Request
from models.service.errors import ServiceError
from models.service.keys import Keys
from models.service.page import _LABELS, Page, sentence_of
from models.service.requests import Planner
from models.service.service import Service
from models.service.settings import Settings
from models.service.store import SqliteJobs

SMALL = {"prompt": "a", "width": "64", "height": "64", "num_frames": "7", "seed": "3"}
OF_A_START = ("strength", "fit", "edit", "eta", "eta_end")


@pytest.fixture
def page(tmp_path):
    settings = Settings(tmp_path)
    jobs = SqliteJobs(settings.database)
    planner = Planner(Request("tiny", mesh="1x1", mode="golden"), inputs=settings.inputs)
    yield Page(Service(settings, jobs, planner, None), Keys())
    jobs.close()


@pytest.fixture
def source(page):
    content = io.BytesIO()
    Image.new("RGB", (64, 48)).save(content, "PNG")
    return page._service.keep(content.getvalue()).id


def fields_of(page, name):
    return page._service.get(name, None).fields


def test_fields_of_a_source_are_sent_and_come_back(page, source):
    given = {"input_reference": source, "strength": "", "fit": True, "edit": True, "eta": "0.8", "eta_end": "0.5"}
    name = page.submit(None, {**SMALL, **given})
    kept = fields_of(page, name)
    assert {field: kept.get(field) for field in OF_A_START} == {
        "strength": None,
        "fit": True,
        "edit": True,
        "eta": 0.8,
        "eta_end": 0.5,
    }
    again, others = page.fields(None, name)
    assert others == [], "the page has a field for each"
    assert again["input_reference"] == source


def test_what_is_off_is_left_out(page):
    name = page.submit(None, {**SMALL, "fit": False, "edit": False, "eta": "", "eta_end": ""})
    assert set(OF_A_START).isdisjoint(fields_of(page, name))


def test_an_error_has_the_names_of_the_page(page, source):
    for field, label in (("eta", "Eta"), ("eta_end", "Eta end")):
        with pytest.raises(ServiceError) as found:
            page.submit(None, {**SMALL, "input_reference": source, field: "0.5"})
        assert label in sentence_of(found.value)
        assert "_" not in sentence_of(found.value)


def test_the_page_shows_every_field_and_fills_it_in_again(page, source):
    gradio = pytest.importorskip("gradio")
    name = page.submit(None, {**SMALL, "input_reference": source, "fit": True, "edit": True, "eta": "0.8"})
    blocks = page.blocks(gradio)
    shown = {each["props"].get("label"): each["type"] for each in blocks.get_config_file()["components"]}
    assert {_LABELS[field]: shown.get(_LABELS[field]) for field in OF_A_START} == {
        "Strength": "textbox",
        "Whole picture": "checkbox",
        "Edit": "checkbox",
        "Eta": "textbox",
        "Eta end": "textbox",
    }
    (reuse,) = [each for each in blocks.fns.values() if len(each.outputs) == len(_LABELS) + 1]
    labels = [each.label for each in reuse.outputs[1:]]
    values = dict(zip(labels, reuse.fn("", name)[1:], strict=True))
    assert [values[_LABELS[field]] for field in OF_A_START] == ["", True, True, "0.8", ""]
