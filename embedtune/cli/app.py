"""The commands: their options, their help, and what they print. What they do is in the public functions."""

from __future__ import annotations

from pathlib import Path
from textwrap import indent
from typing import Annotated, Any

import typer

from embedtune.cli import shell

app: typer.Typer = typer.Typer(
    name="embedtune",
    cls=shell.Commands,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "terminal_width": 80},
)

_CODES = (
    "Exit codes: 0 done, or ship it; 1 failed; 2 wrong usage; 3 keep what you have; 4 cannot tell yet; 130 interrupted."
)

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON; all else goes to standard error.")]
Debug = Annotated[
    bool,
    typer.Option("--debug", help="Show where an error comes from.", is_eager=True, callback=shell.remember_debug),
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", help="A YAML file with options, as `epochs: 3`; those given here win.",
        is_eager=True, callback=shell.read_config,
    ),
]  # fmt: skip
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Agree beforehand, and do not ask.")]
Epochs = Annotated[float | None, typer.Option(metavar="N", help="How often to go through the questions.")]
Seed = Annotated[int, typer.Option(min=0, metavar="N", help="Seed of everything random.")]
LanguageModel = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Who asks about the documents: anthropic:MODEL, openai:MODEL or local:MODEL."),
]
Language = Annotated[
    str, typer.Option(metavar="NAME", help="The language of the questions; by default that of each chunk.")
]
TestSplit = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Let a split judge instead, usually `test`; it is not trained on."),
]
Run = Annotated[
    Path, typer.Argument(metavar="FOLDER", exists=True, help="The folder of `embedtune tune`, or a saved retriever.")
]


def main() -> None:
    """Run the command line."""
    app(prog_name="embedtune")


@app.callback(invoke_without_command=True, epilog=_CODES)
def _embedtune(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    """From your documents to the best retriever for them, and know whether it is better.

    \b
    Try it, on the handbook of an invented company:
      embedtune tune --sample
    On your own documents, with questions from a language model:
      embedtune tune docs/ --llm anthropic:claude-haiku-4-5 --budget 5

    `embedtune COMMAND --help` explains a command.
    """
    if version:
        import embedtune

        typer.echo(embedtune.__version__)
    elif ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


@app.command(epilog=_CODES)
def tune(
    ctx: typer.Context,
    documents: Annotated[
        list[Path] | None, typer.Argument(metavar="DOCUMENTS", exists=True, help="Folders and files to search.")
    ] = None,
    sample: Annotated[bool, typer.Option("--sample", help="Take the handbook of the package.")] = False,
    data: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", exists=True, help="Take a dataset that was saved with its questions."),
    ] = None,
    model: Annotated[str, typer.Option(metavar="NAME", help="A name on the Hub, a folder, or minilm.")] = "minilm",
    llm: LanguageModel = None,
    budget: Annotated[float | None, typer.Option(metavar="USD", help="The most that the questions may cost.")] = None,
    per_chunk: Annotated[int, typer.Option(min=1, metavar="N", help="How many questions to ask for.")] = 4,
    max_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="The largest length of a chunk.")] = 250,
    language: Language = "",
    batch: Annotated[bool, typer.Option("--batch", help="Ask in batches: half the price, up to a day.")] = False,
    folds: Annotated[int, typer.Option(min=2, metavar="N", help="How many folds judge; each costs a training.")] = 5,
    test_split: TestSplit = None,
    epochs: Epochs = None,
    seed: Seed = 0,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where everything goes.")] = Path(
        "out"
    ),
    yes: Yes = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the quote, and send and write nothing.")] = False,
    as_json: Json = False,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Tune a retriever, and say whether to ship it.

    Reads documents, has a language model write questions about them, trains an embedding model and the weights of words on
    these, and compares the result with the model as it was and with BM25, on documents that it has not seen. Before a
    language model is asked, the price is shown, and you are asked for a yes.

    \b
    Examples:
      embedtune tune --sample
      embedtune tune docs/ --llm anthropic:claude-haiku-4-5 --budget 5
      embedtune tune docs/ faq.csv --llm openai:gpt-5-mini --dry-run
      embedtune tune --data data/ --model BAAI/bge-base-en-v1.5

    After Ctrl-C, a crash or an error, the same command goes on where it stopped, and pays nothing twice.

    \b
    In the output folder:
      retriever    the tuned retriever, a plain SentenceTransformer as well
      report.html  the verdict with every question
      data         the chunks and questions
      questions    the replies of the language model: keep them
    The files hold texts of your documents.
    """
    from embedtune import folder
    from embedtune.cli import tuning

    order = tuning.order_of(ctx.params)
    tuning.check(order)
    material = tuning.resumed(tuning.read(order))
    quote = shell.rows_text(tuning.quote_rows(material))
    if dry_run:
        shell.show(quote, tuning.quote_facts(material), as_json=as_json)
        return
    shell.say(f"{quote}\n")
    if material.data is None and not yes:
        shell.agree("Let the language model write the questions?")
    with shell.working():
        run = tuning.run(material)
    folder.save_verdict(output, run.verdict)
    places = {"folder": str(output), "report": str(run.output_dir / "report.html")}
    shell.show(str(run), folder.verdict_facts(run.verdict) | places, as_json=as_json)
    raise typer.Exit(shell.exit_code(run.verdict.headline))


@app.command(epilog=_CODES)
def evaluate(
    data: Annotated[Path, typer.Argument(metavar="DATA", exists=True, help="The folder of a saved dataset.")],
    before: Annotated[str, typer.Argument(metavar="BEFORE", help="What you have now.")],
    after: Annotated[str, typer.Argument(metavar="AFTER", help="What you would use instead.")],
    others: Annotated[list[str] | None, typer.Argument(metavar="OTHERS", help="For comparison.")] = None,
    split: Annotated[str, typer.Option(metavar="NAME", help="Whose questions are asked.")] = "test",
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write a report in HTML.")] = None,
    as_json: Json = False,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Compare retrievers, and say whether to switch.

    All are asked the same questions. Each is the folder of `embedtune tune`, a saved retriever, a model (a name on the Hub, a folder or minilm), or bm25.
    Questions that a folder of `embedtune tune` was trained on prove nothing about it, and the headline says so.

    \b
    Examples:
      embedtune evaluate data/ minilm out/ bm25
      embedtune evaluate data/ out/ BAAI/bge-base-en-v1.5 --report report.html
    """
    from embedtune import folder
    from embedtune.dataset import RetrievalDataset

    names = [before, after, *(others or ())]
    if len(set(names)) < len(names):
        raise typer.BadParameter(f"{max(names, key=names.count)!r} is named twice.")
    loaded = RetrievalDataset.load_from_disk(data)
    verdict = folder.judged(loaded, names, split=split)
    facts = folder.verdict_facts(verdict)
    if report is not None:
        verdict.to_html(report, data=loaded)
        facts |= {"report": str(report)}
    shell.show(verdict.summary, facts, as_json=as_json)
    raise typer.Exit(shell.exit_code(verdict.headline))


@app.command(epilog=_CODES)
def search(
    path: Run,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="In quotation marks.")],
    k: Annotated[int, typer.Option("-k", min=1, metavar="N", help="How many chunks to show.")] = 5,
    as_json: Json = False,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Find the chunks that answer a question.

    A score is the sum of what the vectors and what the words contribute.

    \b
    Examples:
      embedtune search out/ "Who do I phone at night?"
      embedtune search out/ "error E17" -k 3 --json
    """
    from dataclasses import asdict

    from embedtune import folder

    hits = folder.load_retriever(path).search(question, k=k)
    lines = []
    for number, hit in enumerate(hits, 1):
        place = " > ".join([hit.document_id or hit.id, *hit.headings[-1:]])
        lines.append(f"{number}. {hit.score:.2f} = {hit.similarity:.2f} vectors + {hit.words:.2f} words  {place}")
        lines.append(indent(shell.excerpt_text(hit.text), "   "))
    shell.show("\n".join(lines), [asdict(hit) for hit in hits], as_json=as_json)


@app.command(epilog=_CODES)
def improve(
    path: Run,
    feedback: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", exists=True, dir_okay=False, help="The feedback log; by default FOLDER/feedback.sqlite."
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DATA", exists=True, help="Questions to repeat and the locked test; by default FOLDER/data."
        ),
    ] = None,
    epochs: Epochs = None,
    seed: Seed = 0,
    as_json: Json = False,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Train on what people missed, and switch if it helps.

    The new retriever replaces that in FOLDER if it misses fewer questions of the log, is not worse on the locked test, and has not forgotten what it knew.
    Otherwise the old one stays, and the exit code is 3. Rounds are kept in FOLDER/rounds.

    The locked test is the split `test` of the dataset; without one, a fifth of the questions.

    \b
    Examples:
      embedtune improve out/
      embedtune improve out/ --feedback feedback.sqlite --epochs 2
    """
    from dataclasses import asdict

    from embedtune import folder

    with shell.working():
        round_ = folder.improved(
            path, feedback or path / folder.LOG, data or path / folder.DATA, epochs=epochs, seed=seed
        )
    checks = [{"candidate": one.name} | asdict(check) for one in round_.candidates for check in one.checks]
    facts: dict[str, Any] = {
        "headline": folder.round_headline(round_),
        "round": round_.number,
        "status": round_.status,
        "folder": str(round_.path),
    }
    facts |= {"counts": dict(round_.counts), "checks": checks}
    shell.show(f"{folder.round_headline(round_)}\n\n{round_}", facts, as_json=as_json)
    raise typer.Exit(shell.DONE if round_.accepted else shell.KEEP)


@app.command(epilog=_CODES)
def push(
    path: Annotated[Path, typer.Argument(metavar="FOLDER", exists=True, help="The folder of `embedtune tune`.")],
    repo_id: Annotated[str, typer.Argument(metavar="NAME", help="The repository, as organisation/name.")],
    public: Annotated[bool, typer.Option("--public", help="For everyone; by default it is private.")] = False,
    yes: Yes = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show every file and the card, and upload nothing.")
    ] = False,
    as_json: Json = False,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Publish a retriever on the Hub, with its evidence.

    The model and what was learned about words go to the Hugging Face Hub, with a card that says how good they are. The texts of chunks and questions are not uploaded. Log in with `hf auth login`, or set HF_TOKEN.

    \b
    Examples:
      embedtune push out/ my-org/handbook --dry-run
      embedtune push out/ my-org/handbook
    """
    from dataclasses import asdict

    import embedtune as et
    from embedtune import folder
    from embedtune.dataset import RetrievalDataset

    verdict = folder.load_verdict(path)
    shell.say(f"{verdict.headline.capitalize()}: {verdict.reason}")
    if public and not (yes or dry_run):
        shell.agree(f"Publish {repo_id} for everyone?")
    publication = et.push_to_hub(
        folder.load_retriever(path),
        repo_id,
        verdict=verdict,
        data=RetrievalDataset.load_from_disk(path / folder.DATA),
        private=not public,
        dry_run=dry_run,
    )
    shell.show(str(publication), asdict(publication), as_json=as_json)


@app.command("app", epilog=_CODES)
def page(
    path: Run,
    base: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The model to compare with; by default the one that `tune` was given."),
    ] = None,
    feedback: Annotated[
        Path | None,
        typer.Option(metavar="FILE", dir_okay=False, help="The feedback log; by default FOLDER/feedback.sqlite."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DATA", exists=True, help="The dataset to improve with; by default FOLDER/data."),
    ] = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where to listen; by default only this machine can open the page.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="N", help="The port; 0 for any.")] = 7860,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Try a retriever on a page, and collect feedback.

    Shows what it finds beside what the model found before it was tuned. What people say about it goes into the feedback log, misses can be labelled, and the retriever improved with them. Needs embedtune[app]. Ctrl-C ends it.

    With another --host, everyone who reaches the address can read the documents and train.

    \b
    Examples:
      embedtune app out/
      embedtune app out/retriever --base minilm --feedback feedback.sqlite
    """
    from embedtune.app import server
    from embedtune.app.desk import Desk

    server.require_gradio()
    if host not in server.LOOPBACK:
        shell.say(f"Everyone who reaches {host} can read the documents on this page.")
    desk = Desk(path, base=base, feedback=feedback, data=data)
    server.serve(desk, host=host, port=port, ready=lambda address: shell.say(f"The page is at {address}"))
