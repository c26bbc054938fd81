"""A page is one well-formed file that asks for nothing, whatever users' files contain."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import random
import re
import sys
from collections import Counter
from html.parser import HTMLParser

import matplotlib as mpl
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from core import demo
from core.report import CurveTrack, Page, Segment, SegmentTrack
from core.report.timelines import _lanes
from core.video import VideoError, probe, read, write

VOID = {"meta", "input", "img", "br", "link"}
EVIL = "<script>alert('x')</script> & \"quoted\" \x00\ud800"
HARMLESS = "<script>alert('x')</script> & \"quoted\" \N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}"


class Document(HTMLParser):
    """Checks that elements close in order while collecting them: (name, attributes, text inside)."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str], list[str]]] = []
        self.open: list[tuple[str, list[str]]] = []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {[name for name, _ in self.open]}"

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"{tag} repeats an attribute: {attrs}"
        words: list[str] = []
        self.elements.append((tag, dict(attrs), words))
        if tag not in VOID:
            self.open.append((tag, words))

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), []))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1][0] == tag, f"</{tag}> closes <{self.open[-1][0]}>"
        self.open.pop()

    def handle_data(self, data):
        for _, words in self.open:
            words.append(data)

    def all(self, name=None, **attributes):
        wanted = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
        return [
            (attrs, "".join(words))
            for tag, attrs, words in self.elements
            if name in (None, tag) and all(value in (attrs.get(key) or "").split() for key, value in wanted.items())
        ]


def parse(page):
    return Document(page.html())


def full_page(label=EVIL):
    """Every kind of block, with the label wherever a user's text can be."""
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)
    return (
        Page(label, label)
        .text(f"{label}\n\n{label}", name=label)
        .facts({label: label, "n": 3})
        .curves(label, {label: ([1, 2], [3, 4]), "other": ([1, 2], [4, 3])}, x=label, y=label)
        .curves("another", {label: ([1, 2], [3, 4])}, log=True)
        .table(label, [{label: label, "n": i} for i in range(20)])
        .images(label, [(label, [picture, picture])] * 9, heads=(label, "b"))
        .confusion(label, [[3, 1], [0, 2]], [label, "b"])
        .timeline(
            label,
            [SegmentTrack(label, [(0, 1, label, 0.5), (0.5, 2, "b", 0.7)]), CurveTrack(label, [0, 1], {label: [0, 1]})],
            2.0,
        )
    )


def test_every_block_is_well_formed_and_users_text_stays_text():
    document = parse(full_page())
    (script,) = document.all("script")
    assert "alert" not in script[1]
    assert document.all("title")[0][1] == document.all("h1")[0][1] == HARMLESS
    assert (HARMLESS) in [words for _, words in document.all("td")]
    assert HARMLESS in [attrs["data-label"] for attrs, _ in document.all("div", class_="segment")]
    assert {attrs["alt"] for attrs, _ in document.all("img")} == {f"{HARMLESS}: {HARMLESS}", f"{HARMLESS}: b"}
    assert json.loads(document.all(class_="confusion")[0][0]["data-confusion"])["classes"] == [HARMLESS, "b"]
    assert not any(key.startswith("on") for _, attrs, _ in document.elements for key in attrs)


def test_a_page_asks_the_network_for_nothing():
    html = full_page("label").html()
    document = Document(html)
    links = [attrs[key] for _, attrs, _ in document.elements for key in ("src", "href", "xlink:href") if key in attrs]
    assert links
    assert all(link.startswith(("data:", "#")) for link in links)
    assert all(target.startswith(("#", "data:")) for target in re.findall(r"url\(['\"]?([^)]*)", html))
    assert "@import" not in html
    assert not re.search(r"https?://", html)


def test_the_policy_allows_exactly_the_page_s_own_script():
    document = parse(full_page("label"))
    policy = next(attrs["content"] for attrs, _ in document.all("meta") if "http-equiv" in attrs)
    digest = base64.b64encode(hashlib.sha256(document.all("script")[0][1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "http" not in policy


def test_names_in_a_page_are_unique_and_links_lead_somewhere():
    document = parse(full_page("label"))
    ids = [attrs["id"] for _, attrs, _ in document.elements if "id" in attrs]
    assert [name for name, count in Counter(ids).items() if count > 1] == []
    targets = [attrs["href"][1:] for _, attrs, _ in document.elements if attrs.get("href", "").startswith("#")]
    assert len(targets) > 6
    assert set(targets) <= set(ids)
    assert {attrs["aria-labelledby"] for attrs, _ in document.all("section") if "aria-labelledby" in attrs} <= set(ids)


def test_controls_have_names_for_those_who_cannot_see_them():
    document = parse(full_page("label"))
    assert all(attrs.get("aria-label") or words.strip() for attrs, words in document.all("button"))
    assert all(attrs.get("aria-label") for attrs, _ in document.all("input", type="search"))
    assert all(attrs["alt"] for attrs, _ in document.all("img"))
    assert all(attrs["scope"] == "col" for attrs, _ in document.all("th"))
    assert document.all("html")[0][0]["lang"] == "en"
    assert document.all(role="slider")[0][0]["aria-valuemax"] == "2"


def luminance(color):
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground_in_both_schemes(scheme):
    style = parse(Page("x")).all("style")[0][1]
    blocks = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    colors = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[0]))
    if scheme == "dark":
        colors |= dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[1]))
    for ground in ("paper", "panel", "tint"):
        for ink, least in [("ink", 7), ("soft", 4.5)] + [(f"series-{i}", 3) for i in range(8)]:
            light, dark = sorted((luminance(colors[ground]), luminance(colors[ink])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= least, (scheme, ink, ground)


def test_nothing_to_show_is_a_friendly_line_each():
    page = (
        Page("Empty")
        .facts({})
        .curves("a", {})
        .curves("b", {"loss": ([1, 2], [float("nan")] * 2)})
        .curves("c", {"loss": ([], [])})
        .table("d", [])
        .table("e", [], ["x", "y"])
        .images("f", [])
        .confusion("g", np.zeros((2, 2)), ["a", "b"])
        .confusion("h", np.zeros((0, 0)), [])
        .timeline("i", [])
        .timeline("j", [SegmentTrack("truth", [])], 0)
    )
    assert len(parse(page).all("p", class_="notice")) == 11
    assert "This page is empty." in parse(Page("x")).all("main")[0][1]
    assert "No values to draw for loss." in page.html()


def test_the_same_blocks_make_the_same_page():
    assert full_page().html() == full_page().html()


def test_save_writes_a_whole_page_or_leaves_the_old_one(tmp_path):
    path = Page("first").text("kept").save(tmp_path / "deep" / "report.html")
    assert "kept" in path.read_text(encoding="utf-8")
    with pytest.raises(VideoError):
        Page("second").video(tmp_path / "missing.mp4").save(path)
    assert "kept" in path.read_text(encoding="utf-8")
    assert list(path.parent.iterdir()) == [path]


# --- tables


def cells(document):
    """Rows of (shown text, exact value)."""
    found, width = document.all("td"), len(document.all("th"))
    flat = [(words, attrs.get("data-value", words)) for attrs, words in found]
    return [flat[i : i + width] for i in range(0, len(flat), width)]


def test_a_table_shows_rounded_and_keeps_exact_values():
    rows = [
        {"name": "a", "value": 2 / 3, "n": 12345, "tensor": torch.tensor(0.25), "tiny": 1e-9},
        {"name": "b", "value": float("nan"), "n": None, "tensor": np.float32(0.5), "tiny": float("inf"), "more": True},
    ]
    document = parse(Page("x").table("t", rows))
    assert [words for _, words in document.all("th")] == ["name", "value", "n", "tensor", "tiny", "more"]
    first, second = cells(document)
    assert first == [
        ("a", "a"),
        ("0.667", str(2 / 3)),
        ("12,345", "12345"),
        ("0.250", "0.25"),
        ("1.00e-09", "1e-09"),
        ("–", ""),
    ]
    assert second[1:] == [("–", ""), ("–", ""), ("0.500", "0.5"), ("∞", "inf"), ("yes", "True")]
    numeric = [attrs.get("class") for attrs, _ in document.all("th")]
    assert numeric == [None, "number", "number", "number", "number", None]


def test_bars_show_shares_and_only_shares():
    document = parse(Page("x").table("t", [("a", 0.25), ("b", 1.5), ("c", None)], ["name", "share"], bars=("share",)))
    assert [attrs.get("style") for attrs, _ in document.all("td", class_="number")] == ["--share:0.250", None, None]


def test_rows_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"'t': a row has 1 values, expected 2 \(a, b\)"):
        Page("x").table("t", [(1,)], ["a", "b"])
    with pytest.raises(ValueError, match="pass columns="):
        Page("x").table("t", [(1, 2)])


# --- curves


def chart(document, i=0):
    return json.loads(document.all("div", class_="chart")[i][0]["data-chart"])


def test_curves_are_drawn_where_their_values_are():
    x, y = np.arange(5.0), np.array([1.0, 3.0, np.nan, 2.0, 4.0])
    page = Page("x").curves("loss", {"train": (torch.arange(5), torch.from_numpy(y)), "val": (x, y / 2)})
    html, placed = page.html(), chart(parse(page))
    assert [line["name"] for line in placed["series"]] == ["train", "val"]
    assert placed["series"][0]["y"] == [1, 3, None, 2, 4]
    (path,) = re.findall(r'<g id="chart-0-series-0">\s*<path d="([^"]*)"', html)
    points = np.array(re.findall(r"[ML] ([\d.]+) ([\d.]+)", path), dtype=float)
    assert path.count("M") == 2  # the missing value leaves a gap
    width, height = map(float, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', html).groups())
    left, top, across, down = placed["box"]
    ex = (left + (x[[0, 1, 3, 4]] - placed["x"][0]) / np.ptp(placed["x"]) * across) * width
    ey = (top + (placed["y"][1] - y[[0, 1, 3, 4]]) / np.ptp(placed["y"]) * down) * height
    np.testing.assert_allclose(points, np.stack([ex, ey], 1), atol=0.6)


def test_curves_take_their_colors_from_the_page_and_leave_matplotlib_alone():
    before, imported = dict(mpl.rcParams), "matplotlib.pyplot" in sys.modules
    html = Page("x").curves("many", {f"line {i}": ([0, 1], [i, i]) for i in range(10)}).html()
    svg = html[html.index("<svg") : html.index("</svg>")]
    assert set(re.findall(r"#[0-9a-f]{6}", svg)) <= {"#000000"}
    assert {f"var(--series-{i})" for i in range(8)} <= set(re.findall(r"var\(--[\w-]+\)", svg))
    assert dict(mpl.rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules) == imported


@pytest.mark.filterwarnings("error")
def test_axes_may_be_named_in_any_script():
    html = Page("x").curves("a", {"損失": ([0, 1], [0, 1])}, x="$步$", y="x_{1} & y").html()
    assert re.search(r"<text[^>]*>\s*\$步\$\s*</text>", html)
    assert re.search(r"<text[^>]*>\s*x_\{1\} &amp; y\s*</text>", html)


def test_a_long_noisy_curve_gets_a_mean_and_stays_small():
    rng = np.random.default_rng(0)
    x = np.arange(50_000)
    page = Page("x").curves("loss", {"noisy": (x, np.exp(-x / 2e4) + rng.normal(0, 0.1, len(x))), "calm": (x, x / 5e4)})
    html = page.html()
    assert 'id="chart-0-raw-0"' in html
    assert 'id="chart-0-raw-1"' not in html
    assert "Bold: the mean" in html
    assert len(html) < 1_500_000
    noisy = chart(parse(page))["series"][0]
    assert len(noisy["x"]) == 800
    assert (noisy["x"][0], noisy["x"][-1]) == (0, 49_999)


def test_a_curve_of_unequal_lengths_is_refused():
    with pytest.raises(ValueError, match="curve 'loss': 3 values of x and 2 of y"):
        Page("x").curves("a", {"loss": ([1, 2, 3], [1, 2])})


# --- pictures


def pictures(document):
    found = []
    for attrs, _ in document.all("img"):
        kind, encoded = attrs["src"].split(",", 1)
        found.append((kind, np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))))
    return found


def test_small_pictures_are_exact_and_large_ones_are_reduced():
    rng = np.random.default_rng(0)
    small = rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)
    smooth = np.broadcast_to(np.linspace(0, 255, 900).astype(np.uint8)[None, :, None], (600, 900, 3))
    items = [
        ("uint8", small),
        ("tensor", torch.from_numpy(small)),
        ("float", small / 255),
        ("gray", small[..., 0]),
        ("mask", small[..., 0] > 100),
        ("large", smooth),
    ]
    found = pictures(parse(Page("x").images("p", items, max_side=300)))
    assert [kind for kind, _ in found] == ["data:image/png;base64"] * 5 + ["data:image/jpeg;base64"]
    for kind, picture in found[:3]:
        np.testing.assert_array_equal(picture, small, kind)
    np.testing.assert_array_equal(found[3][1], small[..., 0])
    np.testing.assert_array_equal(found[4][1], (small[..., 0] > 100) * 255)
    assert found[5][1].shape == (200, 300, 3)
    np.testing.assert_allclose(found[5][1][100, ::50, 0], np.linspace(0, 255, 300)[::50], atol=4)


def test_groups_have_heads_and_captions():
    picture = np.zeros((8, 8, 3), dtype=np.uint8)
    document = parse(Page("x").images("p", [(f"cut {i}", [picture] * 3) for i in range(10)], heads=("a", "b", "c")))
    assert [words for _, words in document.all("figcaption")] == [f"cut {i}" for i in range(10)]
    assert Counter(words for _, words in document.all("span", class_="head")) == {"a": 10, "b": 10, "c": 10}
    assert document.all("input", class_="filter")
    with pytest.raises(ValueError, match="'cut' has 2 pictures, heads name 3"):
        Page("x").images("p", [("cut", [picture] * 2)], heads=("a", "b", "c"))


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (np.zeros((3, 8, 9), np.uint8), r"'cut' has shape \(3, 8, 9\), expected \(H, W, 3\)"),
        (np.zeros((0, 8, 3), np.uint8), "has shape"),
        (np.zeros((8, 8, 3), np.int64), "holds int64, expected uint8"),
    ],
)
def test_what_is_no_picture_is_refused(picture, words):
    with pytest.raises(ValueError, match=words):
        Page("x").images("p", [("cut", picture)])


# --- confusion


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 70), st.integers(0, 2**31))
def test_a_confusion_draws_every_count_once(n, seed):
    matrix = np.random.default_rng(seed).poisson(0.3, (n, n))
    matrix[0, 0] += 1
    document = parse(Page("x").confusion("c", torch.from_numpy(matrix), [f"class {i}" for i in range(n)]))
    drawn = json.loads(document.all(class_="confusion")[0][0]["data-confusion"])
    again = np.zeros((n, n))
    for i, j, count in drawn["cells"]:
        again[i, j] = count
    np.testing.assert_array_equal(again, matrix)
    paths = {kind: "".join(attrs["d"] for attrs, _ in document.all("path", class_=kind)) for kind in ("hit", "miss")}
    for kind, mask in (("hit", np.eye(n, dtype=bool)), ("miss", ~np.eye(n, dtype=bool))):
        places = {(float(y), float(x)) for x, y in re.findall(r"M([\d.]+) ([\d.]+)", paths[kind])}
        expected = np.argwhere(mask & (matrix > 0)) * drawn["cell"] + [drawn["top"] + 0.5, drawn["left"] + 0.5]
        assert places == {tuple(place) for place in expected}
    right, total = np.trace(matrix), matrix.sum()
    assert f"{right:,} of {total:,} right ({right / total:.1%}), {n} classes" in document.all("p", class_="lead")[0][1]


def test_shades_follow_the_share_of_the_row():
    document = parse(Page("x").confusion("c", [[90, 10], [5, 5]], ["many", "few"]))
    shade = {kind: [float(a["fill-opacity"]) for a, _ in document.all("path", class_=kind)] for kind in ("hit", "miss")}
    assert shade["hit"][0] < shade["hit"][1] < 1  # 50 % and 90 %
    assert shade["miss"][0] < 0.4 < shade["miss"][1] == shade["hit"][0]  # 10 % and 50 %


def test_the_most_frequent_confusions_are_told_in_words():
    matrix = np.diag([10, 10, 10])
    matrix[0, 2], matrix[2, 1] = 4, 6
    document = parse(Page("x").confusion("c", matrix, ["a", "b", "c"]))
    told = [[words for words, _ in row] for row in cells(document)]
    assert told == [["c", "b", "6", "0.375"], ["a", "c", "4", "0.286"]]
    assert "No class was taken for another." in Page("x").confusion("c", np.eye(2), ["a", "b"]).html()


def test_of_too_many_classes_those_with_errors_are_shown():
    matrix = np.diag(np.full(200, 5))
    matrix[150, 3] = 2
    document = parse(Page("x").confusion("c", matrix, [f"class {i}" for i in range(200)], most=2))
    drawn = json.loads(document.all(class_="confusion")[0][0]["data-confusion"])
    assert drawn["classes"] == ["class 3", "class 150"]
    assert drawn["rows"] == [5, 7]
    assert "Shown are the 2 with the most errors" in document.all("p", class_="lead")[0][1]


def test_a_matrix_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"matrix \(2, 3\), expected \(2, 2\) for 2 classes"):
        Page("x").confusion("c", np.zeros((2, 3)), ["a", "b"])
    with pytest.raises(ValueError, match="cannot be negative"):
        Page("x").confusion("c", -np.eye(2), ["a", "b"])


# --- timelines


def styles(attrs):
    return dict(part.split(":") for part in attrs["style"].split(";"))


def test_segments_lie_where_their_times_are():
    tracks = [
        SegmentTrack("truth", [Segment(1.0, 3.0, "cut"), (5, 6, "wash")]),
        SegmentTrack("prediction", [(1.5, 2.5, "cut", 0.9)]),
    ]
    document = parse(Page("x").timeline("t", tracks, 8.0))
    truth, wash, predicted = (attrs for attrs, _ in document.all("div", class_="segment"))
    assert [styles(truth)[key] for key in ("left", "width")] == ["12.5000%", "25.0000%"]
    assert [styles(predicted)[key] for key in ("left", "width")] == ["18.7500%", "12.5000%"]
    assert predicted["data-score"] == "0.9"
    assert "data-score" not in truth
    assert styles(truth)["--hue"] == styles(predicted)["--hue"] != styles(wash)["--hue"]
    assert truth["title"] == "cut, 0:01.0 – 0:03.0"
    legend = [(attrs["data-label"], styles(attrs)["--hue"]) for attrs, _ in document.all("button", data_label="cut")]
    assert legend == [("cut", styles(truth)["--hue"])]
    rows = [[words for words, _ in row] for row in cells(document)]
    assert rows[2] == ["prediction", "1.500", "2.500", "cut", "0.900"]


def test_the_duration_reaches_to_the_last_end():
    document = parse(Page("x").timeline("t", [SegmentTrack("a", [(0, 3725.5, "x")]), SegmentTrack("b")], 60))
    assert document.all("div", class_="timeline")[0][0]["data-duration"] == "3725.5"
    assert "1:02:05.5" in document.all("p", class_="clock")[0][1]
    assert "nothing" in document.all("div", class_="lanes")[1][1]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 12), st.floats(0, 1)), max_size=40))
def test_segments_of_a_lane_never_overlap_and_the_surest_are_on_top(spans):
    segments = [Segment(start, start + length, "x", score) for start, length, score in spans]
    lanes, count = _lanes(segments)
    assert all(0 <= lane < count for lane in lanes)
    for i, one in enumerate(segments):
        for j, other in enumerate(segments[:i]):
            if lanes[i] == lanes[j]:
                assert one.end_s <= other.start_s or other.end_s <= one.start_s
    if segments:
        assert lanes[max(range(len(segments)), key=lambda i: (segments[i].score, -segments[i].start_s))] == 0


def test_curves_of_a_timeline_have_gaps_and_a_scale():
    track = CurveTrack("p", [0, 1, 2, 3], {"cut": [0.5, float("nan"), 0.25, 1.0], "wash": torch.zeros(4)})
    document = parse(Page("x").timeline("t", [track], 4))
    cut, wash = (
        attrs["d"] for attrs, _ in document.all("path", data_label="cut") + document.all("path", data_label="wash")
    )
    assert cut == "M0.00 50.00M500.00 75.00L750.00 0.00"
    assert wash == "M0.00 100.00L250.00 100.00L500.00 100.00L750.00 100.00"
    kept = json.loads(document.all("div", class_="curves")[0][0]["data-curves"])
    assert kept == {"times": [0, 1, 2, 3], "values": {"cut": [0.5, None, 0.25, 1], "wash": [0, 0, 0, 0]}}


@pytest.mark.parametrize("span", [(3, 2), (float("nan"), 1), (0, float("inf")), (-1, 2)])
def test_a_segment_without_sensible_times_is_refused_by_name(span):
    with pytest.raises(ValueError, match=r"track 'truth', segment 1: expected 0 <= start_s <= end_s"):
        Page("x").timeline("t", [SegmentTrack("truth", [(0, 1, "a"), (*span, "b")])], 5)


def test_curves_must_fit_their_times():
    with pytest.raises(ValueError, match=r"track 'p', 'cut': \(2,\) values for \(3,\) times_s"):
        Page("x").timeline("t", [CurveTrack("p", [0, 1, 2], {"cut": [1, 2]})])


# --- videos


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("videos") / "a clip #1.mp4"
    demo.video(path, "left", random.Random(0), frames=12, size=(48, 64), fps=12)
    return path


def embedded(page, tmp_path):
    (attrs, _), *_ = Document(page.html(tmp_path)).all("video")
    kind, encoded = attrs["src"].split(",", 1)
    assert kind == "data:video/mp4;base64"
    path = tmp_path / "embedded.mp4"
    path.write_bytes(base64.b64decode(encoded))
    return path


def test_a_playable_video_is_embedded_as_it_is(clip, tmp_path):
    page = Page("x").timeline("t", [SegmentTrack("truth", [(0, 1, "left")])], 1.0, clip)
    assert embedded(page, tmp_path).read_bytes() == clip.read_bytes()
    assert "with-video" in page.html()


def test_another_format_is_encoded_again_for_browsers(clip, tmp_path):
    frames = read(clip, range(12))
    other = write(tmp_path / "clip.mkv", frames, 12)
    made = embedded(Page("x").video(other), tmp_path)
    info = probe(made)
    assert (info.codec, info.pixel_format, info.frames, info.height, info.width) == ("h264", "yuv420p", 12, 48, 64)
    assert (read(made, range(12)).float() - frames.float()).abs().mean() < 8


def test_a_large_video_is_linked_relative_to_the_page(clip):
    path = Page("x").video(clip, limit_mb=1e-4).save(clip.parent / "reports" / "report.html")
    document = Document(path.read_text(encoding="utf-8"))
    assert document.all("video")[0][0]["src"] == "../a%20clip%20%231.mp4"
    assert "too large for this page (limit 0.0001 MB), so it is linked" in document.all("p", class_="notice")[0][1]


def test_a_folder_of_pictures_plays_at_the_rate_given(clip, tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for i, frame in enumerate(read(clip, range(6))):
        Image.fromarray(frame.numpy()).save(folder / f"frame_{i + 1:010}.jpg")
    info = probe(embedded(Page("x").video(folder, fps=3), tmp_path))
    assert info.frames == 6
    assert info.duration_s == pytest.approx(2.0)
    with pytest.raises(ValueError, match="has no frame rate of its own; pass fps="):
        Page("x").video(folder).html()
