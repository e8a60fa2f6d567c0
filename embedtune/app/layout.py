"""How the page looks: three tabs of Gradio over what `Desk` does."""

from __future__ import annotations

import functools
from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING, Any

import gradio as gr

from embedtune.app import markup
from embedtune.retrieval.encoders import model_name

if TYPE_CHECKING:
    from embedtune.app.desk import Asked, Desk
    from embedtune.retrieval.hits import Hit

_NUM_SHOWN = 5

HEAD = '<meta name="viewport" content="width=device-width, initial-scale=1">'

CSS = """
.et-what, .et-note, .et-more { color: #5c5c66; }
.dark :is(.et-what, .et-note, .et-more) { color: #b4b4be; }
h1 { font-size: 1.4rem; font-weight: 700; } h2 { font-size: 1.1rem; font-weight: 600; }
.et-hit { padding: .7rem .8rem; overflow-wrap: anywhere; background: var(--background-fill-primary); }
.et-hit header { display: flex; justify-content: space-between; gap: .8rem; }
.et-note { white-space: nowrap; }
.et-score { font-variant-numeric: tabular-nums; font-size: .9rem; }
.et-v { color: #1d5fa8; } .et-w { color: #a3540a; }
.dark .et-v { color: #7db4f0; } .dark .et-w { color: #f0a860; }
.et-bar { display: flex; height: 5px; margin: .2rem 0 .4rem; background: var(--border-color-primary); }
.et-bar i { display: block; height: 100%; } .et-bv { background: #2f7dd1; } .et-bw { background: #e08a2c; }
.et-text { white-space: pre-wrap; } .et-text summary { cursor: pointer; list-style: none; }
details[open] .et-short { display: none; } details:not([open]) .et-less { display: none; }
.et-more { text-decoration: underline; }
.et-card, .et-card > .styler { background: transparent !important; }
.et-card { border: 1px solid var(--border-color-primary); }
.et-named { box-shadow: inset 4px 0 0 #2e9e5b; }
table.et-figures, .et-figures :is(tr, td) { border: none !important; }
.et-figures td { padding: .1rem 1rem .1rem 0 !important; } .et-figures td + td { text-align: right; }
.et-no { color: #a32a1c; } .dark .et-no { color: #f0907f; }
footer { display: none !important; }
"""


def theme() -> gr.Theme:
    """Return a theme whose fonts are those of the machine, since nothing is loaded from elsewhere."""
    return gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


def build_page(desk: Desk) -> gr.Blocks:
    """Return the page."""
    with gr.Blocks(title="embedtune", analytics_enabled=False) as page:
        gr.HTML(markup.title(f"{desk.path}: {len(desk.retriever):,} chunks", desk.verdict), padding=False)
        with gr.Tab("Search"):
            _search(desk)
        with gr.Tab("Misses") as misses:
            _misses(desk, misses)
        with gr.Tab("Improve") as improving:
            _improve(desk, improving)
    page.queue(default_concurrency_limit=4)
    return page


def _search(desk: Desk) -> None:
    asked = gr.State(None)
    box = gr.Textbox(
        label="Question",
        placeholder="Who do I phone at night?",
        lines=1,
        max_lines=4,
        submit_btn="Search",
        autofocus=True,
    )
    if examples := desk.examples():
        gr.Examples(
            examples, inputs=box, label="Questions that the tuned retriever answers and the base model does not"
        )
    _on(box.submit, lambda text: desk.ask(_question(text)), [box], [asked])

    def show(found: Asked | None) -> None:
        if found is None:
            return
        if found.problem:
            gr.HTML(markup.message(f"The question was not logged: {found.problem}"))
        _opinions(desk, asked, found)
        with gr.Row():
            with gr.Column(min_width=320):
                gr.HTML(markup.column_head("Tuned", "vectors and words, as they were tuned"), padding=False)
                for rank, hit in enumerate(found.hits[:_NUM_SHOWN], 1):
                    _hit(desk, asked, found, hit, rank, note=markup.rank_note(found, hit, rank))
            with gr.Column(min_width=320):
                if desk.base is None:
                    gr.HTML(markup.column_head("Base", "To compare with the model before, start the page with --base."))
                    return
                gr.HTML(markup.column_head("Base", f"vectors of {model_name(desk.base.model)}"), padding=False)
                for rank, hit in enumerate(found.base[:_NUM_SHOWN], 1):
                    _hit(desk, asked, found, hit, rank)

    gr.render(inputs=[asked])(show)


def _opinions(desk: Desk, asked: gr.State, found: Asked) -> None:
    """Show what can be said about all hits together."""
    with gr.Row():
        for label, thumbs_up in (("Found it", True), ("Not found", False)):
            chosen = "primary" if found.thumbs_up is thumbs_up else "secondary"
            button = gr.Button(label, size="sm", variant=chosen, min_width=90)
            _on(button.click, functools.partial(desk.rate, thumbs_up=thumbs_up), [asked], [asked])
        _none_of_them(desk, asked, found)
    if found.thumbs_up is False and found.named is None:
        gr.HTML("<p class='et-what'>Mark the chunk that answers it below, or later under Misses.</p>", padding=False)


def _none_of_them(desk: Desk, asked: gr.State, found: Asked) -> None:
    chosen = "primary" if found.named == () else "secondary"
    button = gr.Button("No chunk answers it", size="sm", variant=chosen, min_width=90)
    _on(button.click, desk.name_none, [asked], [asked])


def _hit(desk: Desk, asked: gr.State, found: Asked, hit: Hit, rank: int, *, note: str = "") -> None:
    is_named = found.is_named(hit)
    with gr.Group(elem_classes="et-card"):
        gr.HTML(markup.hit_card(hit, rank, note=note, is_named=is_named), padding=False)
        button = gr.Button(
            "✓ The answer" if is_named else "This chunk is the answer",
            size="sm",
            variant="primary" if is_named else "secondary",
        )
    _on(button.click, lambda one: desk.name(one, hit), [asked], [asked])


def _misses(desk: Desk, tab: gr.Tab) -> None:
    asked = gr.State(None)
    gr.HTML(
        "<p class='et-what'>Questions that were not answered. Mark each chunk that answers one: improving learns from it.</p>",
        padding=False,
    )
    choice = gr.Dropdown(label="Misses to label", choices=[], interactive=True)
    again = gr.Button("Next", size="sm")

    def listed() -> tuple[Any, Asked | None]:
        misses = desk.open_misses()
        choices = [(one.text, one.number) for one in misses]
        label = f"{len(misses)} misses to label" if misses else "No misses to label"
        shown = gr.Dropdown(choices=choices, value=misses[0].number if misses else None, label=label)
        return shown, desk.candidates(misses[0]) if misses else None

    def chosen(number: int | None) -> Asked | None:
        return next((desk.candidates(one) for one in desk.open_misses() if one.number == number), None)

    _on(tab.select, listed, [], [choice, asked])
    _on(again.click, listed, [], [choice, asked])
    _on(choice.input, chosen, [choice], [asked])

    def show(found: Asked | None) -> None:
        if found is None:
            return
        gr.HTML(f"<h2>{escape(found.text)}</h2>", padding=False)
        _none_of_them(desk, asked, found)
        for rank, hit in enumerate(found.hits, 1):
            _hit(desk, asked, found, hit, rank)

    gr.render(inputs=[asked])(show)


def _improve(desk: Desk, tab: gr.Tab) -> None:
    gr.HTML(
        "<p class='et-what'>Trains on the questions with a known answer. The new retriever serves only if it passes every check: "
        "it misses less, is not worse on the locked test, and has not forgotten what it knew.</p>",
        padding=False,
    )
    status = gr.HTML(padding=False)
    start = gr.Button("Improve", variant="primary")
    result = gr.HTML(padding=False)

    def refreshed() -> str:
        return markup.figures(desk.counts(), desk.obstacle())

    def improved() -> str:
        try:
            return markup.round_report(desk.improve())
        except (ValueError, OSError, RuntimeError) as err:
            return markup.message(str(err))

    _on(tab.select, refreshed, [], [status])
    _on(start.click, improved, [], [result])


def _question(text: str) -> str:
    if not text.strip():
        raise ValueError("Type a question first.")
    return text.strip()


def _on(event: Any, function: Callable[..., Any], inputs: list[Any], outputs: list[Any]) -> None:
    """Let a function run when something happens; what it refuses is shown on the page as text."""

    def told(*values: Any) -> Any:
        try:
            return function(*values)
        except (ValueError, OSError, RuntimeError) as err:
            raise gr.Error(escape(str(err))) from err

    event(told, inputs=inputs, outputs=outputs, api_visibility="private")
