import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from rdm.report.data import (
    Credit,
    Draw,
    Photographs,
    Query,
    QuickstartReport,
    SampleGroup,
    Stage,
    SwapRow,
    Work,
)
from rdm.report.quickstart.report import render_report, write_report

HOSTILE = (
    "<script>alert(1)</script><img src=https://evil.example/x onerror=y> \" ' & {{ 7 * 7 }} 鳥"
)


@pytest.fixture(scope="module")
def html(examples: SimpleNamespace) -> str:
    """The page of the report that has everything."""
    return render_report(examples.make_report())


def test_every_tag_is_closed(examples: SimpleNamespace, html: str) -> None:
    page = examples.Page(html)
    assert page.open == []
    assert page.mismatched == []


def test_page_loads_nothing_from_elsewhere(examples: SimpleNamespace, html: str) -> None:
    page = examples.Page(html)
    assert {attributes["src"].split(";")[0] for attributes in page.all("img")} == {"data:image/png"}
    assert [attributes["href"] for attributes in page.all("link")] == ["data:,"]
    assert not {"iframe", "object", "embed", "video", "audio", "source", "base", "form"} & {
        tag for tag, _ in page.tags
    }
    assert all("src" not in attributes for attributes in page.all("script"))
    style = "".join(re.findall(r"<style>.*?</style>", html, re.DOTALL))
    assert "url(" not in style
    assert "@import" not in style


def test_content_security_policy_forbids_the_network(examples: SimpleNamespace, html: str) -> None:
    page = examples.Page(html)
    policies = [
        attributes["content"] for attributes in page.all("meta") if "http-equiv" in attributes
    ]
    assert policies == [
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    ]


def test_hostile_text_is_shown_and_not_run(examples: SimpleNamespace, html: str) -> None:
    report = examples.make_report(HOSTILE)
    report = replace(
        report,
        title=HOSTILE,
        samples_note=HOSTILE,
        limits=(HOSTILE,),
        created=HOSTILE,
        stages=(Stage(HOSTILE, 1.0, HOSTILE, 1, HOSTILE),),
    )
    page = examples.Page(render_report(report))
    assert len(page.all("script")) == len(examples.Page(html).all("script")) == 1
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert page.words.count("<script>alert(1)</script>") >= 8


def test_links_of_credits_are_web_links_or_plain_text(examples: SimpleNamespace) -> None:
    credits = (
        Credit(
            "Bad",
            "javascript:alert(1)",
            (Work("W", "data:text/html,x"), Work("", "https://a.example/1")),
        ),
    )
    photographs = Photographs("s", "CC BY 2.0", "javascript:x", (examples.picture(0),), credits)
    page = examples.Page(render_report(QuickstartReport(photographs=photographs)))
    assert [a["href"] for a in page.all("a") if not a["href"].startswith("#")] == [
        "https://a.example/1"
    ]
    assert "Bad W, untitled" in page.words


def test_unlinked_credits_are_said_to_be_unlinked(examples: SimpleNamespace, html: str) -> None:
    report = examples.make_report()
    assert "does not say which file is whose" in examples.Page(html).words
    assert report.photographs is not None
    linked = replace(report, photographs=replace(report.photographs, credits_linked=True))
    assert "does not say which file is whose" not in examples.Page(render_report(linked)).words


def test_every_picture_has_an_alternative_text_and_a_size(
    examples: SimpleNamespace, html: str
) -> None:
    images = examples.Page(html).all("img")
    assert images
    assert all(image["alt"] and image["width"] == image["height"] == "16" for image in images)


def test_every_plot_has_a_title(html: str) -> None:
    plots = re.findall(r'<svg [^>]*class="plot"[^>]*>(<title>[^<]+</title>)?', html)
    assert len(plots) == 8
    assert all(plots)


def test_contents_lead_to_existing_sections(examples: SimpleNamespace, html: str) -> None:
    page = examples.Page(html)
    identifiers = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    assert {a["href"][1:] for a in page.all("a") if a["href"].startswith("#")} <= set(identifiers)


def test_empty_report_names_everything_it_leaves_out(examples: SimpleNamespace) -> None:
    page = examples.Page(render_report(QuickstartReport()))
    assert page.all("section") == []
    assert (
        "Not part of this run, so not shown: what was built, the database, queries beside "
        "their neighbors, "
        "training, samples, the same seeds, another database, measurements, run it again, limits."
    ) in page.words


def test_full_report_leaves_nothing_out(examples: SimpleNamespace, html: str) -> None:
    page = examples.Page(html)
    assert "Not part of this run" not in page.words
    assert [attributes["id"] for attributes in page.all("section")] == [
        "built",
        "database",
        "queries",
        "training",
        "samples",
        "swap",
        "numbers",
        "reproduce",
        "limits",
    ]


@pytest.mark.parametrize(
    "field", ["stages", "queries", "samples", "metrics", "limits", "similarities"]
)
def test_each_tuple_may_be_empty(examples: SimpleNamespace, field: str) -> None:
    assert (
        examples.Page(render_report(replace(examples.make_report(), **{field: ()}))).mismatched
        == []
    )


@pytest.mark.parametrize(
    "field", ["database", "photographs", "training", "swap", "held_out", "reproduction"]
)
def test_each_part_may_be_missing(examples: SimpleNamespace, field: str) -> None:
    assert (
        examples.Page(render_report(replace(examples.make_report(), **{field: None}))).mismatched
        == []
    )


def test_page_says_which_model_the_training_went_on_from_and_what_that_means_for_held_out_pictures(
    examples: SimpleNamespace, html: str
) -> None:
    report = examples.make_report()
    assert report.training is not None
    went_on = replace(report, training=replace(report.training, start="assets://rdm-64"))
    words = examples.Page(render_report(went_on)).words
    assert "from the weights of assets://rdm-64" in words
    assert "what assets://rdm-64 was trained on says its card" in words
    assert "from the weights of" not in examples.Page(html).words


def test_training_without_a_finite_loss_is_left_out(examples: SimpleNamespace) -> None:
    report = examples.make_report()
    assert report.training is not None
    broken = replace(report, training=replace(report.training, losses=(float("nan"),) * 3))
    assert "not shown: training." in examples.Page(render_report(broken)).words


def test_headlines_are_the_numbers_of_the_data(examples: SimpleNamespace, html: str) -> None:
    words = examples.Page(html).words
    for headline in (
        "from photographs to this page 2 min 04 s",
        "patches of 827 photographs 3,240",
        "recall@20 of the index 0.993",
        "parameters trained 11.7 million",
        "held-out loss, shuffled minus true +0.0177",
    ):
        assert headline in words


def test_similarity_is_printed_and_drawn(html: str) -> None:
    assert '<i style="width:90%"></i></span><span class="caption">0.90</span>' in html


def test_stage_bars_are_relative_to_the_longest(html: str) -> None:
    assert 'style="width:50.0%"' in html
    assert 'style="width:100.0%"' in html


def test_samples_of_a_swap_must_share_their_seeds(examples: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match="same seeds"):
        SwapRow(Query("text", "owl"), Draw((), examples.samples(2)), Draw((), examples.samples(3)))


def test_example_shows_at_most_eight_samples_of_the_first_query(examples: SimpleNamespace) -> None:
    report = replace(examples.make_report(num_samples=20), swap=None)
    figure = render_report(report).split("</figure>")[0]
    assert figure.count('alt="sample, seed') == 8


def test_the_page_opens_with_the_swap(examples: SimpleNamespace) -> None:
    report = examples.make_report()
    figure = render_report(report).split("</figure>")[0]
    assert report.swap.name_a in figure
    assert report.swap.name_b in figure


def test_influence_stands_below_a_neighbor_that_has_one(examples: SimpleNamespace) -> None:
    plain = examples.neighbors(2)
    told = (replace(plain[0], influence=0.62), replace(plain[1], influence=-0.1))
    pages = [
        render_report(
            QuickstartReport(
                samples=(SampleGroup(Query("text", "owl"), (Draw(found, examples.samples(1)),)),)
            )
        )
        for found in (plain, told)
    ]
    assert "62%" not in pages[0]
    assert ">62%</span>" in pages[1]
    assert ">\u221210%</span>" in pages[1]


def test_sixty_four_large_samples_stay_under_five_megabytes(examples: SimpleNamespace) -> None:
    group = SampleGroup(
        Query("text", "owl"), (Draw(examples.neighbors(20), examples.samples(64, side=96)),)
    )
    assert len(render_report(QuickstartReport(samples=(group,)))) < 5_000_000


def test_credits_that_are_many_stay_small() -> None:
    credits = tuple(
        Credit(
            f"Author {i}",
            f"https://example.org/{i}",
            (Work("A bird", f"https://example.org/w/{i}"),),
        )
        for i in range(800)
    )
    photographs = Photographs("s", "CC BY 2.0", "", (), credits)
    assert len(render_report(QuickstartReport(photographs=photographs))) < 300_000


def test_rendering_is_a_function_of_the_data(examples: SimpleNamespace, html: str) -> None:
    assert html == render_report(examples.make_report())


def test_report_is_written_as_one_file(
    examples: SimpleNamespace, html: str, tmp_path: Path
) -> None:
    write_report(examples.make_report(), tmp_path / "report.html")
    write_report(examples.make_report(), tmp_path / "report.html")
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == html
